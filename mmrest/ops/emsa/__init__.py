from .attention import choose_backend, describe_backend, emsa_attention
from .reference import attention_map

__all__ = ['attention_map', 'choose_backend', 'describe_backend', 'emsa_attention']
