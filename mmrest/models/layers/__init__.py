from .drop_path import DropPath
from .emsa import EMSA
from .layout import image_to_tokens, tokens_to_image
from .position import PixelAttention

__all__ = ['EMSA', 'DropPath', 'PixelAttention', 'image_to_tokens', 'tokens_to_image']
