from .attention import check_backend, describe_backend, emsa_attention

__all__ = ['check_backend', 'describe_backend', 'emsa_attention']
