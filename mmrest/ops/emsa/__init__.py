from .attention import check_backend, describe_backend, emsa_attention
from .reference import attention_map

__all__ = ['attention_map', 'check_backend', 'describe_backend', 'emsa_attention']
