from .drop_path import DropPath
from .embed import PatchEmbed, Stem
from .emsa import EMSA
from .ffn import FFN
from .layout import channels_last, image_to_tokens, tokens_to_image
from .position import PixelAttention

__all__ = [
    'EMSA', 'FFN', 'DropPath', 'PatchEmbed', 'PixelAttention', 'Stem', 'channels_last',
    'image_to_tokens', 'tokens_to_image'
]
