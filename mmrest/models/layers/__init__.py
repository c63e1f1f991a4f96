from .drop_path import DropPath
from .embed import PatchEmbed, Stem
from .emsa import EMSA
from .ffn import FFN
from .layout import image_to_tokens, tokens_to_image
from .position import PixelAttention

__all__ = [
    'EMSA', 'FFN', 'DropPath', 'PatchEmbed', 'PixelAttention', 'Stem', 'image_to_tokens',
    'tokens_to_image'
]
