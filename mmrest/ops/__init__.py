from .emsa import emsa_attention

__all__ = ['emsa_attention']
