from .drop_path import DropPath
from .embed import PatchEmbed, PatchEmbedV2, Stem, StemV2
from .emsa import EMSA
from .emsa_v2 import EMSAv2
from .ffn import FFN
from .layout import channels_last, image_to_tokens, tokens_to_image
from .position import PixelAttention

__all__ = [
    'EMSA', 'FFN', 'DropPath', 'EMSAv2', 'PatchEmbed', 'PatchEmbedV2', 'PixelAttention', 'Stem',
    'StemV2', 'channels_last', 'image_to_tokens', 'tokens_to_image'
]
