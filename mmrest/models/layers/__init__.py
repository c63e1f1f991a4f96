from .blockwise import by_blocks
from .drop_path import DropPath
from .emsa import EMSA
from .layout import image_to_tokens, tokens_to_image
from .position import GroupLinear, LearnedPosition, PixelAttention
from .stem import PVTStem, ResNetStem, Stem

__all__ = [
    'EMSA', 'DropPath', 'GroupLinear', 'LearnedPosition', 'PVTStem', 'PixelAttention',
    'ResNetStem', 'Stem', 'by_blocks', 'image_to_tokens', 'tokens_to_image'
]
