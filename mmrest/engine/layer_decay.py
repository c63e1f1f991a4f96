"""Learning rates that fall from block to block towards the stem, in any model."""
from typing import List

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..apis import find_rest


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's constructor with ``paramwise_cfg=dict(layer_decay_rate=0.8, ...)``.

    It multiplies the learning rate of a parameter by ``layer_decay_rate`` for each depth of
    :meth:`mmrest.ResT.get_layer_depth` that comes after it. All other keys keep their meaning.
    MMPretrain's constructor of this kind takes classifiers alone, those of MMDetection and
    MMSegmentation take ConvNeXt, BEiT and MAE alone.

    Raises:
        ValueError: The model has no ResT.
    """

    def add_params(self, params: List[dict], module: nn.Module, prefix: str = '',
                   **kwargs) -> None:
        super().add_params(params, module, prefix, **kwargs)
        if prefix:
            return  # called for a part of the model, by the line above
        backbone = find_rest(module)
        name = next(name for name, m in module.named_modules() if m is backbone)
        names = {p: n for n, p in module.named_parameters()}
        for group in params:
            depth, num_depths = backbone.get_layer_depth(names[group['params'][0]], f'{name}.')
            scale = self.paramwise_cfg['layer_decay_rate']**(num_depths - 1 - depth)
            group['lr'] = group.get('lr', self.base_lr) * scale
