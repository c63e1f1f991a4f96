from .ablations import ResTAblation
from .layers import EMSA, EMSAv2
from .rest import ResT
from .restv2 import ResTV2
from .start import FromScratch

__all__ = ['EMSA', 'EMSAv2', 'FromScratch', 'ResT', 'ResTAblation', 'ResTV2']
