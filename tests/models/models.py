"""The backbones that a test of any backbone runs on, small and with telling weights."""
import torch

from mmrest import ResT, ResTV2

MODELS = [ResT, ResTV2]
ARCH = dict(
    embed_dims=(16, 24, 40, 48), depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8),
    sr_ratios=(8, 4, 2, 1))


def build(cls, arch=ARCH, **kwargs):
    """In float64 and eval mode; weights so large that no branch hides behind a std of 0.02."""
    torch.manual_seed(0)
    model = cls(arch, **kwargs)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (1 if p.ndim == 1 else 0))
    return model.double().eval()


def image(*shape, seed=0):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
