from .emsa import choose_backend, describe_backend, emsa_attention

__all__ = ['choose_backend', 'describe_backend', 'emsa_attention']
