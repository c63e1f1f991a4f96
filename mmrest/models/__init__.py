from .ablations import ResTAblation
from .layers import EMSA, EMSAv2
from .rest import ResT
from .restv2 import ResTV2

__all__ = ['EMSA', 'EMSAv2', 'ResT', 'ResTAblation', 'ResTV2']
