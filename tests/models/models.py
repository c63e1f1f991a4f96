"""The backbones that a test of any backbone runs on, small and with telling weights."""
import pytest
import torch

from mmrest import ResT, ResTV2

MODELS = [ResT, ResTV2]
every_model = pytest.mark.parametrize('cls', MODELS)
ARCH = dict(
    embed_dims=(16, 24, 40, 48), depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8),
    sr_ratios=(8, 4, 2, 1))
TINY = dict(embed_dims=(8, 16), depths=(1, 2), num_heads=(1, 2), sr_ratios=(2, 1))


def tiny(cls=ResT, **kwargs):
    torch.manual_seed(0)
    return cls(TINY, **dict(dict(out_indices=None), **kwargs))


def randomize(model):
    """Weights large enough that no branch hides behind a std of 0.02."""
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        with torch.no_grad():
            p.copy_(torch.randn_like(p) * 0.3 + (p.ndim == 1 and 'weight' in name))
    return model


def build(cls, arch=ARCH, **kwargs):
    """In float64 and eval mode."""
    return randomize(cls(arch, **kwargs)).double().eval()


def image(*shape, seed=0):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
