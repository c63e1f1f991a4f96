"""A start for training without pretrained weights."""
import torch
from mmengine.model import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from .layers import PixelAttention


@WEIGHT_INITIALIZERS.register_module()
class FromScratch:
    """Opens the gates of pixel attention: ``init_cfg=dict(type='FromScratch')`` of a ResT.

    The published start draws every convolution with a standard deviation of 0.02. Pixel
    attention is then ``x * sigmoid(DWConv(x))`` with a sigmoid of 0.5 everywhere. Here the
    weights of its convolutions are normal, with Kaiming's standard deviation for the nine
    inputs of a depth-wise 3x3 convolution, sqrt(2 / 9). All other parameters of the whole
    model stay as they are, and start as they would with the same seed.

    Raises:
        ValueError: The module has no pixel attention.
    """

    def __call__(self, module: nn.Module) -> None:
        gates = [m.pa_conv for m in module.modules() if isinstance(m, PixelAttention)]
        if not gates:
            raise ValueError(f'FromScratch: {type(module).__name__} has no pixel attention')
        # Numbers of its own: neck and head draw what they would draw without it.
        own = torch.default_generator.clone_state()
        own.manual_seed(int(torch.randint(2**62, (), generator=own)))
        for conv in gates:
            weight = torch.empty(conv.weight.shape, device='cpu')  # the same on every device
            nn.init.kaiming_normal_(weight, nonlinearity='relu', generator=own)
            conv.weight.data.copy_(weight)
        if hasattr(module, '_params_init_info'):  # inside init_weights
            update_init_info(module, 'FromScratch: normal, standard deviation sqrt(2 / 9)')
