"""ResT V2: Simpler, Faster and Stronger (https://arxiv.org/abs/2204.07366).

The stages, blocks and outputs are those of :mod:`mmrest.models.rest`. Four things differ:

    Stem         two 3x3 convolutions, strides 2 and 2, a 1x1 convolution, PA, LayerNorm
    PatchEmbed   3x3 convolution, stride 2, PA, LayerNorm (no BatchNorm)
    EMSAv2       no mixing of heads, no norm of the map; the values are up-sampled and added
    LayerNorm    eps 1e-6

Modules and parameters carry the names of the published code, so that its weights fit.
"""
import re
from typing import Dict, List, Optional, Sequence, Tuple, Union

from mmengine.registry import MODELS
from torch import nn

from .layers import EMSAv2, PatchEmbedV2, StemV2
from .rest import COMMON, ResT


@MODELS.register_module()
class ResTV2(ResT):
    """The four-stage ResTv2 backbone. Nothing but its stem has BatchNorm.

    Arguments that are not below, and errors, are those of :class:`~mmrest.ResT`.

    Args:
        arch (str | dict): 'tiny', 'small', 'base' or 'large', or a dict as in
            :class:`~mmrest.ResT`.
        drop_path_rate (float, optional): As in :class:`~mmrest.ResT`. ``None`` means 0.1,
            0.2, 0.3 or 0.5 (0 for an ``arch`` dict), the rates of the published detection
            code. The authors state the one of ImageNet training for 'tiny' alone, 0.1.
    """

    arch_zoo = {
        'tiny': dict(
            COMMON, embed_dims=(96, 192, 384, 768), depths=(1, 2, 6, 2), drop_path_rate=0.1),
        'small': dict(
            COMMON, embed_dims=(96, 192, 384, 768), depths=(1, 2, 12, 2), drop_path_rate=0.2),
        'base': dict(
            COMMON, embed_dims=(96, 192, 384, 768), depths=(1, 3, 16, 3), drop_path_rate=0.3),
        'large': dict(
            COMMON, embed_dims=(128, 256, 512, 1024), depths=(2, 3, 16, 2),
            num_heads=(2, 4, 8, 16), drop_path_rate=0.5),
    }
    norm_eps = 1e-6

    def __init__(self,
                 arch: Union[str, Dict[str, Sequence]] = 'tiny',
                 in_channels: int = 3,
                 out_indices: Union[int, Sequence[int], None] = (0, 1, 2, 3),
                 frozen_stages: int = -1,
                 norm_eval: bool = False,
                 drop_path_rate: Optional[float] = None,
                 with_cp: bool = False,
                 init_cfg: Optional[Union[dict, List[dict]]] = None,
                 backend: Optional[str] = None,
                 out_norm: bool = True):
        super().__init__(
            arch, in_channels, out_indices, frozen_stages, norm_eval, drop_path_rate, with_cp,
            init_cfg, backend=backend, out_norm=out_norm)

    @staticmethod
    def stage_names(i: int) -> Tuple[str, str, str]:
        """Published names of the embedding, the blocks and the output norm of stage i."""
        return 'stem' if i == 0 else f'patch_{i + 1}', f'stage{i + 1}', f'norm_{i + 1}'

    def own_name(self, published: str) -> str:
        """The name here of a parameter in a published file.

        Detection files have ``norm_1.0`` for ``norm_1``. The ``norm`` of ImageNet files is a
        classifier's. It is ``norm_4`` here if the last stage alone is returned, as a
        classifier needs it. Otherwise ``norm_4`` is another norm, and ``norm`` is not used.
        """
        if published.startswith('norm.') and len(self.out_indices) > 1:
            return published
        return super().own_name(re.sub(r'^(norm_\d)\.0\.', r'\1.', published))

    def _embed(self, i: int, in_channels: int, embed_dims: int) -> nn.Module:
        return (PatchEmbedV2 if i else StemV2)(in_channels, embed_dims, self.norm_eps)

    def _attention(self, embed_dims: int, num_heads: int, sr_ratio: int) -> nn.Module:
        return EMSAv2(embed_dims, num_heads, sr_ratio, self.norm_eps, self.backend)
