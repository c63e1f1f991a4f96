"""ResT: An Efficient Transformer for Visual Recognition (https://arxiv.org/abs/2105.13677).

    image (B, 3, H, W)
      |  Stem          three 3x3 convolutions, strides 2 1 2, then PA        section 3.3
      |  Block x n1    EMSA + FFN, s = 8, 1 head                             equation (5)
      +--LayerNorm---> (B, C1, H/4, W/4)
      |  PatchEmbed    3x3 convolution, stride 2, then PA                    figure 4
      |  Block x n2    s = 4, 2 heads
      +--LayerNorm---> (B, C2, H/8, W/8)
      |  PatchEmbed, Block x n3 (s = 2, 4 heads)
      +--LayerNorm---> (B, C3, H/16, W/16)
      |  PatchEmbed, Block x n4 (s = 1, 8 heads)
      +--LayerNorm---> (B, C4, H/32, W/32)

Modules and parameters carry the names of the published code, so that its weights fit.
"""
import re
from typing import Dict, Iterator, List, Never, Optional, Sequence, Tuple, Union

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .checkpoint import refuse_published, safe_init_cfg
from .layers import EMSA, FFN, DropPath, PatchEmbed, PixelAttention, Stem
from .layers.layout import channels_last, image_to_tokens, tokens_to_image

# What the four models of table 1 share.
COMMON = dict(num_heads=(1, 2, 4, 8), sr_ratios=(8, 4, 2, 1), mlp_ratios=(4, 4, 4, 4))


class Block(nn.Module):
    """Efficient Transformer block, equation (5), on tokens (B, H W, C)."""

    def __init__(self, attn: nn.Module, embed_dims: int, mlp_ratio: float, drop_path: float,
                 eps: float = 1e-5):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims, eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(embed_dims, eps)
        self.mlp = FFN(embed_dims, int(embed_dims * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, hw: Tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), hw))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@MODELS.register_module()
class ResT(BaseModule):
    """The four-stage ResT backbone.

    Args:
        arch (str | dict): 'lite', 'small', 'base' or 'large' (table 1), or a dict of
            ``embed_dims``, ``depths``, ``num_heads``, ``sr_ratios`` and, optionally,
            ``mlp_ratios`` (4 each), with one value per stage.
        in_channels (int): Channels of the input image.
        out_indices (int | Sequence[int], optional): The stages whose features are returned,
            from 0 or, if negative, from the end, in increasing order. ``None`` means all.
            Stages after the last one are not built, nor are the output norms of stages that
            are not returned.
        frozen_stages (int): Freezes the stem (0) and this many stages (1 to 4) with their
            patch embeddings and output norms: no gradient, and always eval mode. -1 freezes
            nothing.
        norm_eval (bool): Keeps every BatchNorm in eval mode, so that its statistics stay.
        drop_path_rate (float, optional): Stochastic depth of the last block, in [0, 1). It
            rises linearly from 0 at the first block. ``None`` means the rate of ImageNet
            training (0 for an ``arch`` dict).
        with_cp (bool): Checkpoints each block: less memory in training, more time.
        init_cfg (dict | list[dict], optional): ``dict(type='Pretrained', checkpoint=...)``
            loads published weights or our own (``prefix='backbone.'`` for a detector's
            checkpoint), see :func:`~mmrest.models.checkpoint.load_pretrained`. ``None``
            means the published initialisation: weights normal with std 0.02, biases 0.
            ``dict(type='FromScratch')`` opens the gates of pixel attention, see
            :class:`~mmrest.models.FromScratch`.
        backend (str, optional): What computes the attention, see
            :func:`~mmrest.ops.choose_backend`.
        norm_in_trunk (bool): Feeds each output norm into the next stage, as the published
            detection code does and its weights need. By default the norms are beside the trunk.
        out_norm (bool): Whether there are output norms. Without them the features are those of
            the last block of each stage.

    Raises:
        ValueError: An argument is not one of the values above.
        RuntimeError: The backend cannot run on this machine.
    """

    # Table 1, and the drop path rates of ImageNet training.
    arch_zoo = {
        'lite': dict(
            embed_dims=(64, 128, 256, 512), depths=(2, 2, 2, 2), drop_path_rate=0.1, **COMMON),
        'small': dict(
            embed_dims=(64, 128, 256, 512), depths=(2, 2, 6, 2), drop_path_rate=0.1, **COMMON),
        'base': dict(
            embed_dims=(96, 192, 384, 768), depths=(2, 2, 6, 2), drop_path_rate=0.2, **COMMON),
        'large': dict(
            embed_dims=(96, 192, 384, 768), depths=(2, 2, 18, 2), drop_path_rate=0.3, **COMMON),
    }
    norm_eps = 1e-5
    num_extra_tokens = 0  # MMPretrain's vis_cam.py asks: there is no class token

    def __init__(self,
                 arch: Union[str, Dict[str, Sequence]] = 'small',
                 in_channels: int = 3,
                 out_indices: Union[int, Sequence[int], None] = (0, 1, 2, 3),
                 frozen_stages: int = -1,
                 norm_eval: bool = False,
                 drop_path_rate: Optional[float] = None,
                 with_cp: bool = False,
                 init_cfg: Optional[Union[dict, List[dict]]] = None,
                 backend: Optional[str] = None,
                 norm_in_trunk: bool = False,
                 out_norm: bool = True,
                 **others: Never):
        if others:
            raise TypeError(f'ResT has no argument {", ".join(others)}; stem, position, '
                            'attention and img_size are those of ResTAblation')
        super().__init__(safe_init_cfg(init_cfg))
        settings = self._settings(arch)
        depths = settings['depths']
        self.arch = arch if isinstance(arch, str) else 'custom'
        self.num_stages = len(depths)  # of the architecture, built or not
        self.out_indices = _check_indices(out_indices, self.num_stages)
        self.depths = depths[:self.out_indices[-1] + 1]  # of the stages that are built
        self.out_channels = tuple(int(settings['embed_dims'][i]) for i in self.out_indices)
        self.strides = tuple(4 * 2**i for i in self.out_indices)
        if norm_in_trunk and not out_norm:
            raise ValueError(f'{norm_in_trunk=} needs output norms, and {out_norm=}')
        if not -1 <= frozen_stages <= self.num_stages:
            raise ValueError(f'{frozen_stages=} must be from -1 to {self.num_stages}')
        rate = settings['drop_path_rate'] if drop_path_rate is None else drop_path_rate
        if not 0 <= rate < 1:  # 1 would divide by zero
            raise ValueError(f'drop_path_rate={rate} must be in [0, 1)')
        self.in_channels, self.backend = in_channels, backend
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self.with_cp, self.norm_in_trunk, self.out_norm = with_cp, norm_in_trunk, out_norm

        last = max(sum(depths) - 1, 1)
        rates = (rate * i / last for i in range(sum(depths)))  # one per block
        for i in range(len(self.depths)):
            self._make_stage(i, settings, rates)
        self.apply(_init_module)
        for module in self._frozen():
            module.requires_grad_(False)
        self.train()
        self.register_load_state_dict_post_hook(refuse_published)

    @classmethod
    def _settings(cls, arch: Union[str, Dict[str, Sequence]]) -> dict:
        """The values per stage, as tuples, and the drop path rate of an ``arch``."""
        if isinstance(arch, str) and arch in cls.arch_zoo:
            return cls.arch_zoo[arch]
        required = {'embed_dims', 'depths', 'num_heads', 'sr_ratios'}
        if (isinstance(arch, dict) and required <= set(arch) <= required | {'mlp_ratios'}
                and len({len(values) for values in arch.values()}) == 1):
            values = {key: tuple(values) for key, values in arch.items()}
            return {'mlp_ratios': (4, ) * len(values['depths']), 'drop_path_rate': 0., **values}
        raise ValueError(f'{arch=} must be one of {sorted(cls.arch_zoo)} or a dict of '
                         f'{sorted(required)} and perhaps mlp_ratios, one value per stage each')

    @staticmethod
    def stage_names(i: int) -> Tuple[str, str, str]:
        """Published names of the embedding, the blocks and the output norm of stage i."""
        return 'stem' if i == 0 else f'patch_embed_{i + 1}', f'stage{i + 1}', f'norm{i + 1}'

    def own_name(self, published: str) -> str:
        """The name here of a parameter in a published file: ``norm`` is the last norm."""
        last_norm = self.stage_names(self.num_stages - 1)[2]
        return re.sub(r'^norm\.', f'{last_norm}.', published)

    def _make_stage(self, i: int, settings: dict, rates: Iterator[float]) -> None:
        """Add a stage: embedding, blocks and, if it is returned, output norm."""
        embed, stage, norm = self.stage_names(i)
        in_channels, dims = (self.in_channels, *settings['embed_dims'])[i:i + 2]
        num_heads, sr_ratio = settings['num_heads'][i], settings['sr_ratios'][i]
        self.add_module(embed, self._embed(i, in_channels, dims))
        self.add_module(stage, nn.ModuleList(
            Block(self._attention(dims, num_heads, sr_ratio), dims, settings['mlp_ratios'][i],
                  next(rates), self.norm_eps) for _ in range(self.depths[i])))
        if i in self.out_indices:
            self.add_module(norm, nn.LayerNorm(dims, self.norm_eps) if self.out_norm
                            else nn.Identity())

    def _embed(self, i: int, in_channels: int, embed_dims: int) -> nn.Module:
        pos = PixelAttention(embed_dims)
        return (PatchEmbed if i else Stem)(in_channels, embed_dims, pos)

    def _attention(self, embed_dims: int, num_heads: int, sr_ratio: int) -> nn.Module:
        return EMSA(embed_dims, num_heads, sr_ratio, backend=self.backend)

    def stages(self) -> List[Tuple[nn.Module, nn.ModuleList, Optional[nn.Module]]]:
        """The embedding, the blocks and the output norm, if it has one, of each stage."""
        return [tuple(getattr(self, name, None) for name in self.stage_names(i))
                for i in range(len(self.depths))]

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """(B, in_channels, H, W) -> one contiguous (B, C_i, H_i, W_i) per out_indices.

        H_i is H / 4 (stage 0) to H / 32 (stage 3), rounded up, and W_i likewise.
        """
        x = channels_last(x)
        outs = []
        for embed, blocks, norm in self.stages():
            x = embed(x)  # (B, C_i, H_i, W_i)
            hw = x.shape[-2:]
            x = image_to_tokens(x)  # (B, N, C_i)
            for block in blocks:
                if self.with_cp and x.requires_grad:
                    x = checkpoint(block, x, hw, use_reentrant=False)
                else:
                    x = block(x, hw)
            if norm is not None:
                out = norm(x)
                outs.append(tokens_to_image(out, hw).contiguous())
                if self.norm_in_trunk:
                    x = out
            x = tokens_to_image(x, hw)
        return tuple(outs)

    def _frozen(self) -> List[nn.Module]:
        if self.frozen_stages == 0:
            return [self.stem]
        stages = self.stages()[:max(self.frozen_stages, 0)]
        return [module for stage in stages for module in stage if module is not None]

    def train(self, mode: bool = True) -> 'ResT':
        """Set the mode. Frozen modules, and every BatchNorm if norm_eval, stay in eval."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """Depth of a parameter and number of depths, for layer-wise decay of learning rates.

        ``param_name`` is its name in a whole model, where this backbone's names begin with
        ``prefix``. The stem has depth 0 and each block one more. A patch embedding counts with
        the block after it, an output norm with the block before it, and what is not in the
        backbone comes last.
        """
        num_depths = sum(self.depths) + 2
        depth = 0  # of the last block before the stage
        for i, num_blocks in enumerate(self.depths):
            embed, stage, norm = (f'{prefix}{name}.' for name in self.stage_names(i))
            if param_name.startswith(embed):
                return depth + (i > 0), num_depths
            if param_name.startswith(stage):
                return depth + 1 + int(param_name[len(stage):].split('.')[0]), num_depths
            depth += num_blocks
            if param_name.startswith(norm):
                return depth, num_depths
        return num_depths - 1, num_depths


def _check_indices(out_indices: Union[int, Sequence[int], None], n: int) -> Tuple[int, ...]:
    given = range(n) if out_indices is None else out_indices
    given = [given] if isinstance(given, int) else given
    indices = tuple(i + n if i < 0 else i for i in given)
    if not indices or list(indices) != sorted(set(indices) & set(range(n))):
        raise ValueError(f'{out_indices=} must be increasing, from 0 to {n - 1}; '
                         '-1 is the last stage')
    return indices


def _init_module(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            # DistributedDataParallel warns unless weight and gradient strides match.
            weight = module.weight.data[:, 0, :, :, None]
            module.weight.data = weight.permute(0, 3, 1, 2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
