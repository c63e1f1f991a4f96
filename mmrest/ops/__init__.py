from .emsa import choose_backend, emsa_attention

__all__ = ['choose_backend', 'emsa_attention']
