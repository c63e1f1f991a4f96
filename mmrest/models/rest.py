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
import os
import re
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.utils.checkpoint
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..ops import describe_backend
from ..ops.arguments import check_bool, check_int, check_number
from .checkpoint import load_pretrained
from .layers import (
    EMSA,
    DropPath,
    GroupLinear,
    LearnedPosition,
    PixelAttention,
    PVTStem,
    ResNetStem,
    Stem,
    by_blocks,
    image_to_tokens,
    tokens_to_image,
)

STEMS = {'rest': Stem, 'resnet': ResNetStem, 'pvt': PVTStem}
POSITIONS = {'pa': PixelAttention, 'gl': GroupLinear, 'le': LearnedPosition}
# Arguments of EMSA; plain multi-head self-attention does not reduce either.
ATTENTIONS = {
    'emsa': dict(),
    'emsa_no_norm': dict(normalize=False),
    'emsa_plain': dict(mix_heads=False, normalize=False),
    'msa': dict(mix_heads=False, normalize=False, sr_ratio=1),
}


class PatchEmbed(nn.Module):
    """A 3x3 convolution that halves the image's sides, BatchNorm, position (figure 4)."""

    def __init__(self, in_channels: int, embed_dims: int, pos: nn.Module):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, embed_dims, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(embed_dims)
        self.pos = pos

    def forward(self, x: Tensor) -> Tensor:
        return self.pos(self.norm(self.conv(x)))


class FFN(nn.Module):
    """Two linear layers with a GELU between, equation (3)."""

    def __init__(self, embed_dims: int, hidden_dims: int):
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dims, embed_dims)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """``FFN(norm(x))`` of tokens (B, N, C)."""
        return by_blocks(
            lambda tokens: self.act(self.fc1(norm(tokens))),
            [*norm.parameters(), *self.fc1.parameters()], self.fc2, x)


class Block(nn.Module):
    """Efficient Transformer block, equation (5), on tokens (B, H W, C)."""

    def __init__(self, attn: EMSA, embed_dims: int, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims)
        self.attn = attn
        self.norm2 = nn.LayerNorm(embed_dims)
        self.mlp = FFN(embed_dims, int(embed_dims * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, hw: Tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), hw))
        return x + self.drop_path(self.mlp(x, self.norm2))


@MODELS.register_module()
class ResT(BaseModule):
    """The four-stage ResT backbone.

    Args:
        arch (str | dict): 'lite', 'small', 'base' or 'large' (table 1 of the paper), or
            a dict of ``embed_dims``, ``depths``, ``num_heads`` and ``sr_ratios``
            (optionally ``mlp_ratios``, 4 each), sequences with one value per stage.
        in_channels (int): Channels of the input image.
        out_indices (Sequence[int], optional): Stages whose features are returned, from 0,
            increasing; ``None`` means every stage. No stage past the last of them
            is built, and no output norm for a stage that is not among them.
        frozen_stages (int): The stem (0) and the stages up to this one (1 is the
            first) are frozen with their patch embeddings and output norms: no
            gradient, and in eval mode whatever the backbone's. -1 freezes nothing.
        norm_eval (bool): Keep every BatchNorm in eval mode, so that its statistics
            stay.
        drop_path_rate (float, optional): Stochastic depth of the last block; it rises
            linearly from 0 at the first. ``None`` takes the rate of the model's
            ImageNet training (0 for an ``arch`` given as a dict).
        with_cp (bool): Checkpoint each block: less memory in training, more time.
        init_cfg (dict | list[dict], optional): ``dict(type='Pretrained',
            checkpoint=...)`` loads published or mmrest weights (``prefix='backbone.'``
            for those inside a detector's checkpoint), see
            :func:`~mmrest.models.checkpoint.load_pretrained`.
            ``None`` leaves the published initialisation: truncated normal of std 0.02
            for convolutions and linear layers, biases 0, norms 1 and 0.
        stem (str): 'rest', or of table 5 'resnet' or 'pvt' (sides of 4 pixels and more).
        position (str): 'pa', or of table 7 'gl' or 'le', which fixes the image size.
        attention (str): 'emsa', or of table 6 'emsa_no_norm' (without InstanceNorm),
            'emsa_plain' (without the 1x1 convolution too) or 'msa' (nor a reduction).
        img_size (int | tuple[int, int]): Height and width of every image where
            ``position='le'``; the others take any size.
        backend (str, optional): What computes the attention: 'reference', 'chunked',
            'triton' or 'auto', see :func:`~mmrest.ops.emsa_attention`. ``None`` takes
            the environment variable MMREST_ATTENTION_BACKEND, or 'auto' without one.
        norm_in_trunk (bool): Feed each returned stage's norm on into the next stage, as
            the published detection code does, and as its weights need; in the published
            classification code, and by default, the output norms stand beside the trunk.

    Raises:
        TypeError, ValueError: An argument is not of the kind or in the range above.
        RuntimeError: The backend asked for cannot run on this machine.
    """

    # Table 1 of the paper; drop_path_rate is the one of its ImageNet training.
    arch_zoo = {
        name: dict(
            embed_dims=embed_dims,
            depths=depths,
            num_heads=(1, 2, 4, 8),
            sr_ratios=(8, 4, 2, 1),
            mlp_ratios=(4, 4, 4, 4),
            drop_path_rate=drop_path_rate)
        for name, embed_dims, depths, drop_path_rate in (
            ('lite', (64, 128, 256, 512), (2, 2, 2, 2), 0.1),
            ('small', (64, 128, 256, 512), (2, 2, 6, 2), 0.1),
            ('base', (96, 192, 384, 768), (2, 2, 6, 2), 0.2),
            ('large', (96, 192, 384, 768), (2, 2, 18, 2), 0.3),
        )
    }

    def __init__(self,
                 arch: Union[str, Dict[str, Sequence]] = 'small',
                 in_channels: int = 3,
                 out_indices: Optional[Sequence[int]] = (0, 1, 2, 3),
                 frozen_stages: int = -1,
                 norm_eval: bool = False,
                 drop_path_rate: Optional[float] = None,
                 with_cp: bool = False,
                 init_cfg: Optional[Union[dict, List[dict]]] = None,
                 stem: str = 'rest',
                 position: str = 'pa',
                 attention: str = 'emsa',
                 img_size: Union[int, Tuple[int, int]] = 224,
                 backend: Optional[str] = None,
                 norm_in_trunk: bool = False):
        super().__init__(init_cfg)
        _check_init_cfg(init_cfg)
        self.arch = arch if isinstance(arch, str) else 'custom'
        settings = self._arch_settings(arch)
        embed_dims, depths = settings['embed_dims'], settings['depths']
        self.num_stages = len(depths)  # of the architecture, built or not
        self.out_indices = _check_out_indices(out_indices, self.num_stages)
        self.depths = depths[:self.out_indices[-1] + 1]  # of the stages that are built
        check_int('frozen_stages', frozen_stages, -1)
        if frozen_stages > self.num_stages:
            raise ValueError(f'frozen_stages={frozen_stages} must be from -1 (none) to '
                             f'{self.num_stages} (every stage)')
        check_int('in_channels', in_channels, 1)
        check_bool('norm_eval', norm_eval)
        check_bool('with_cp', with_cp)
        check_bool('norm_in_trunk', norm_in_trunk)
        if drop_path_rate is None:
            drop_path_rate = settings['drop_path_rate']
        check_number('drop_path_rate', drop_path_rate)
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate={drop_path_rate} must be in [0, 1)')
        for name, value, allowed in (('stem', stem, STEMS), ('position', position, POSITIONS),
                                     ('attention', attention, ATTENTIONS)):
            if not isinstance(value, str) or value not in allowed:
                raise ValueError(f'{name}={value!r} must be one of {sorted(allowed)}')
        self.img_size = None  # any
        if position == 'le':
            self.img_size = _check_img_size(img_size)
        self.in_channels = in_channels
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.norm_in_trunk = norm_in_trunk
        if backend is None:
            backend = os.environ.get('MMREST_ATTENTION_BACKEND', 'auto')

        last_block = max(sum(depths) - 1, 1)
        drop_paths = (drop_path_rate * i / last_block for i in range(sum(depths)))
        for i in range(self.out_indices[-1] + 1):
            dims = embed_dims[i]
            pos = self._position(position, stem, i, dims)
            if i == 0:
                self.stem = STEMS[stem](in_channels, dims, pos)
            else:
                embed = PatchEmbed(embed_dims[i - 1], dims, pos)
                self.add_module(f'patch_embed_{i + 1}', embed)
            emsa = dict(
                num_heads=settings['num_heads'][i],
                sr_ratio=settings['sr_ratios'][i],
                backend=backend)
            emsa.update(ATTENTIONS[attention])
            mlp_ratio = settings['mlp_ratios'][i]
            blocks = [
                Block(EMSA(dims, **emsa), dims, mlp_ratio, next(drop_paths))
                for _ in range(depths[i])
            ]
            self.add_module(f'stage{i + 1}', nn.ModuleList(blocks))
            if i in self.out_indices:
                self.add_module(f'norm{i + 1}', nn.LayerNorm(dims))

        self.apply(_init_module)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train()
        print_log(f"ResT's attention: {describe_backend(backend)}", 'current')

    def init_weights(self) -> None:
        """Apply ``init_cfg``; 'Pretrained' reads its file without running code in it."""
        init_cfgs = self.init_cfg or []
        if isinstance(init_cfgs, dict):
            init_cfgs = [init_cfgs]
        pretrained = [cfg for cfg in init_cfgs if _is_pretrained(cfg)]
        first_call = not self.is_init
        whole, self.init_cfg = self.init_cfg, [
            cfg for cfg in init_cfgs if not _is_pretrained(cfg)
        ]
        try:
            super().init_weights()
        finally:
            self.init_cfg = whole
        if not first_call:
            return
        if not init_cfgs:
            print_log(f'ResT(arch={self.arch!r}) starts from random weights', 'current')
        for cfg in pretrained:
            load_pretrained(self, **{k: v for k, v in cfg.items() if k != 'type'})

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """(B, in_channels, H, W) -> one contiguous (B, C_i, H_i, W_i) per out_indices.

        H_i is H / 4 (stage 0) to H / 32 (stage 3), rounded up (``stem='pvt'`` rounds
        its 4 down), likewise W_i.

        Raises:
            TypeError: The image is no tensor of floating-point numbers.
            ValueError: It is of another shape.
        """
        if not torch.jit.is_tracing():  # which warns of every comparison of sizes
            _check_image(x, self.in_channels)
        if self.img_size not in (None, x.shape[-2:]):
            raise ValueError(f"position='le' takes images of img_size={self.img_size} alone, "
                             f'not {tuple(x.shape[-2:])}')
        x = x.contiguous(memory_format=torch.channels_last)
        outs = []
        for i in range(self.out_indices[-1] + 1):
            embed = self.stem if i == 0 else getattr(self, f'patch_embed_{i + 1}')
            x = embed(x)  # (B, C_i, H_i, W_i)
            hw = x.shape[-2:]
            tokens = image_to_tokens(x)  # (B, N, C_i)
            for block in getattr(self, f'stage{i + 1}'):
                if self.with_cp and tokens.requires_grad:
                    tokens = torch.utils.checkpoint.checkpoint(
                        block, tokens, hw, use_reentrant=False)
                else:
                    tokens = block(tokens, hw)
            if i in self.out_indices:
                norm = getattr(self, f'norm{i + 1}')
                normed = norm(tokens)
                outs.append(tokens_to_image(normed, hw).contiguous())
                if self.norm_in_trunk:
                    tokens = normed
            if i < self.out_indices[-1]:
                x = tokens_to_image(tokens, hw)
        return tuple(outs)

    def train(self, mode: bool = True) -> 'ResT':
        """Set the mode, but leave what is frozen, and BatchNorm by norm_eval, in eval."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """Where a parameter stands, for MMPretrain's layer-wise decay of learning rates.

        Args:
            param_name (str): Name of the parameter in the whole model.
            prefix (str): What this backbone's names start with in it.

        Returns:
            tuple[int, int]: The depth and the number of depths: the stem is 0, each block
            one more (a patch embedding counts with the block after it, an output norm with
            the one before), and what is not in the backbone comes last.
        """
        num_depths = sum(self.depths) + 2
        if not param_name.startswith(prefix):
            return num_depths - 1, num_depths
        part, *rest = param_name[len(prefix):].split('.')
        if part == 'stem':
            return 0, num_depths
        stage = int(re.search(r'\d+$', part)[0])
        depth = sum(self.depths[:stage - 1])  # of the last block before the stage
        if part.startswith('norm'):
            depth += self.depths[stage - 1]
        else:
            depth += 1 + (int(rest[0]) if part.startswith('stage') else 0)
        return depth, num_depths

    @classmethod
    def _arch_settings(cls, arch: Union[str, Dict[str, Sequence]]) -> dict:
        """One value per stage of each setting, and the default drop_path_rate."""
        if isinstance(arch, str):
            if arch not in cls.arch_zoo:
                raise ValueError(
                    f'arch={arch!r} must be one of {sorted(cls.arch_zoo)} or a dict')
            return cls.arch_zoo[arch]
        if not isinstance(arch, dict):
            raise TypeError(f'arch={arch!r} must be a str or a dict')
        required = {'embed_dims', 'depths', 'num_heads', 'sr_ratios'}
        if not required <= set(arch) <= required | {'mlp_ratios'}:
            raise ValueError(f'arch has the keys {sorted(map(str, arch))}; it must have '
                             f'{sorted(required)} and may have mlp_ratios')
        for key, values in arch.items():
            if not isinstance(values, Sequence) or isinstance(values, str):
                raise TypeError(f'arch: {key}={values!r} must be a sequence of one value per '
                                'stage')
        settings = {key: tuple(values) for key, values in arch.items()}
        num_stages = len(settings['embed_dims'])
        settings.setdefault('mlp_ratios', (4, ) * num_stages)
        for key, values in settings.items():
            if len(values) != num_stages or num_stages == 0:
                raise ValueError(f'arch: {key}={values} must have one value per stage, '
                                 f'as embed_dims={settings["embed_dims"]} has')
            if key != 'mlp_ratios' and not all(_is_int(value, 1) for value in values):
                raise ValueError(f'arch: {key}={values} must be ints from 1 up')
        for ratio, dims in zip(settings['mlp_ratios'], settings['embed_dims']):
            check_number('arch: one of mlp_ratios', ratio, above=0)
            if ratio * dims < 1:
                raise ValueError(f"arch: mlp_ratios={settings['mlp_ratios']} must leave every "
                                 f"FFN a channel, of embed_dims={settings['embed_dims']}")
        if settings['embed_dims'][0] % 2:
            raise ValueError(f'arch: embed_dims={settings["embed_dims"]} must start with an '
                             'even number: the stem is half as wide')
        return dict(settings, drop_path_rate=0.)

    def _position(self, kind: str, stem: str, stage: int, embed_dims: int) -> nn.Module:
        if kind != 'le':
            return POSITIONS[kind](embed_dims)
        hw = [side // 4 if stem == 'pvt' else -(-side // 4) for side in self.img_size]
        return LearnedPosition(embed_dims, tuple(-(-side // 2**stage) for side in hw))

    def _frozen_modules(self) -> List[nn.Module]:
        names = ['stem'] if self.frozen_stages >= 0 else []
        for i in range(1, self.frozen_stages + 1):
            names += [f'patch_embed_{i}', f'stage{i}', f'norm{i}']
        return [module for name, module in self.named_children() if name in names]


def _check_out_indices(out_indices: Optional[Sequence[int]],
                       num_stages: int) -> Tuple[int, ...]:
    if out_indices is None:
        return tuple(range(num_stages))
    if isinstance(out_indices, (str, bytes)) or not isinstance(
            out_indices, Sequence) or not all(_is_int(i) for i in out_indices):
        raise TypeError(f'out_indices={out_indices!r} must be a sequence of ints or None')
    indices = tuple(out_indices)
    if not indices or not set(indices) <= set(range(num_stages)) or any(
            a >= b for a, b in zip(indices, indices[1:])):
        raise ValueError(f'out_indices={indices} must be increasing stage numbers from 0 '
                         f'to {num_stages - 1}')
    return indices


def _check_img_size(img_size: Union[int, Tuple[int, int]]) -> Tuple[int, int]:
    hw = (img_size, img_size) if isinstance(img_size, int) else img_size
    if not isinstance(hw, Sequence) or len(hw) != 2 or not all(_is_int(x, 1) for x in hw):
        raise ValueError(f'img_size={img_size!r} must be an int from 1 up, or two of them')
    return tuple(hw)


def _check_init_cfg(init_cfg: Optional[Union[dict, List[dict]]]) -> None:
    if init_cfg is None:
        return
    entries = [init_cfg] if isinstance(init_cfg, dict) else init_cfg
    if not isinstance(entries, (list, tuple)) or not all(
            isinstance(cfg, dict) and 'type' in cfg for cfg in entries):
        raise TypeError(f'init_cfg={init_cfg!r} must be a dict with a type, a list of them '
                        'or None')


def _check_image(x: Tensor, channels: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f'x={x!r} must be a tensor of images')
    if not x.is_floating_point():
        raise TypeError(f'x of {x.dtype} must be of a floating-point type')
    if x.ndim != 4 or x.shape[1] != channels or 0 in x.shape[-2:]:
        raise ValueError(f'x of shape {tuple(x.shape)} must be (B, {channels}, H, W), H and W '
                         'from 1 up')


def _is_int(value: Any, least: Optional[int] = None) -> bool:
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return least is None or value >= least


def _is_pretrained(init_cfg: dict) -> bool:
    kind = init_cfg.get('type')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.rpartition('.')[2] in ('Pretrained', 'PretrainedInit')  # any scope's


def _init_module(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
