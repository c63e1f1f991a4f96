from .reference import emsa_attention

__all__ = ['emsa_attention']
