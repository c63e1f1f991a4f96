"""ResT and ResTv2 in timm, for ``features_only=True``. Importing this registers their names.

    import timm
    import mmrest.timm_models
    model = timm.create_model('rest_small', features_only=True, checkpoint_path=PATH)

This brings them to segmentation_models_pytorch (as ``'tu-rest_small'``), to transformers'
TimmBackbone and to detrex, too.
"""
from typing import List, Optional, Union

import torch
from timm.models import (
    FeatureInfo,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from torch import Tensor

from .models import ResT, ResTV2
from .models.checkpoint import load_weights


class Features:
    """What timm expects of a model that returns features."""

    def __init__(self, arch: str, in_chans: int, out_indices, **kwargs):
        dims = self.arch_zoo[arch]['embed_dims']
        if isinstance(out_indices, int):  # the number of stages, from the last
            out_indices = range(-out_indices, 0)
        super().__init__(arch, in_chans, out_indices, **kwargs)
        self.feature_info = FeatureInfo(
            [dict(num_chs=c, reduction=4 * 2**i, module=self.stage_names(i)[2])
             for i, c in enumerate(dims)], self.out_indices)

    def forward(self, x: Tensor) -> List[Tensor]:
        return list(super().forward(x))

    def load_state_dict(self, state_dict, strict: bool = True, **kwargs):
        """Published names, too: what timm reads from ``checkpoint_path`` comes here."""
        if strict:
            state_dict = load_weights(self, state_dict, 'state_dict')
        return super().load_state_dict(state_dict, strict=False, **kwargs)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.with_cp = enable


class ResTFeatures(Features, ResT):
    pass


class ResTV2Features(Features, ResTV2):
    pass


default_cfgs = generate_default_cfgs({  # of ImageNet: PretrainedCfg's defaults
    **{f'rest_{arch}': dict(first_conv='stem.conv1') for arch in ResT.arch_zoo},
    **{f'restv2_{arch}': dict(first_conv='stem.proj.0') for arch in ResTV2.arch_zoo}})


def _create(model: type, arch: str, pretrained=False, features_only=False, in_chans=3,
            out_indices=(0, 1, 2, 3), pretrained_cfg=None, pretrained_cfg_overlay=None,
            feature_cls: str = 'list', device: Union[str, torch.device, None] = None,
            dtype: Optional[torch.dtype] = None, cache_dir=None, num_classes=None,
            global_pool=None, drop_rate=None, **kwargs) -> Features:
    """What timm's ``build_model_with_cfg`` does. There is no classifier to have an argument."""
    name = f"{model.__name__.replace('Features', '').lower()}_{arch}"
    if pretrained or not features_only:
        raise ValueError(f'{name}: {pretrained=}, {features_only=} must be False and True; '
                         'give weights by checkpoint_path')
    if feature_cls not in ('list', 'hook', 'fx', 'getter'):  # lists, all of them
        raise ValueError(f"{name}: {feature_cls=} must be 'list', its features are a list")
    built = model(arch, in_chans, out_indices, **kwargs).to(device=device, dtype=dtype)
    cfg = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay).to_dict()
    built.pretrained_cfg = built.default_cfg = {
        key: value for key, value in cfg.items() if key not in ('num_classes', 'classifier')}
    return built


@register_model
def rest_lite(**kwargs) -> Features:
    return _create(ResTFeatures, 'lite', **kwargs)


@register_model
def rest_small(**kwargs) -> Features:
    return _create(ResTFeatures, 'small', **kwargs)


@register_model
def rest_base(**kwargs) -> Features:
    return _create(ResTFeatures, 'base', **kwargs)


@register_model
def rest_large(**kwargs) -> Features:
    return _create(ResTFeatures, 'large', **kwargs)


@register_model
def restv2_tiny(**kwargs) -> Features:
    return _create(ResTV2Features, 'tiny', **kwargs)


@register_model
def restv2_small(**kwargs) -> Features:
    return _create(ResTV2Features, 'small', **kwargs)


@register_model
def restv2_base(**kwargs) -> Features:
    return _create(ResTV2Features, 'base', **kwargs)


@register_model
def restv2_large(**kwargs) -> Features:
    return _create(ResTV2Features, 'large', **kwargs)
