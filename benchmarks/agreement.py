"""Compares mmrest with the port of the published model before anything is measured."""
import torch

from benchmarks.published import PublishedResT, published_names
from benchmarks.publishedv2 import PublishedResTV2
from mmrest import ResT, ResTV2

# Image height and width for each arch. Small's attention takes more than one block.
SIZES = {'lite': (72, 104), 'small': (512, 656), 'base': (72, 104), 'large': (72, 104),
         'v2 tiny': (72, 104)}
# Relative, by precision. Triton's kernels take no float64, so a GPU is compared in float32 too.
TOLERANCES = dict(cpu={torch.float64: 1e-6}, cuda={torch.float64: 1e-6, torch.float32: 2e-3})


def pair(arch):
    """The port and mmrest's model with the same random weights, in eval mode."""
    torch.manual_seed(0)
    kind, port = (ResTV2, PublishedResTV2) if arch.startswith('v2 ') else (ResT, PublishedResT)
    ours, published = (model(arch.split()[-1]) for model in (kind, port))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    published.load_state_dict(published_names(ours.state_dict()))
    return published.eval(), ours.eval()


def check(device='cpu', sizes=SIZES):
    """Compare features and the image's gradient.

    Returns:
        float: Largest difference in float64, relative to the largest value.

    Raises:
        AssertionError: They do not agree.
    """
    worst = 0.
    for arch, size in sizes.items():
        models = pair(arch)
        for dtype, tolerance in TOLERANCES[device].items():
            # Two images: at batch 1, PyTorch's BatchNorm gives the port a wrong gradient.
            image = torch.randn(2, 3, *size, device=device, dtype=dtype)
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                outs = [run(model.to(device, dtype), image) for model in models]
            for want, got in zip(*outs):
                largest = want.abs().max().item()
                torch.testing.assert_close(
                    got, want, rtol=tolerance, atol=max(1e-8, tolerance / 1e2) * largest)
                if dtype == torch.float64:
                    worst = max(worst, (got - want).abs().max().item() / largest)
    return worst


def run(model, image):
    """Features of all stages, and the image's gradient."""
    image = image.clone().requires_grad_()
    features = model(image)
    grad, = torch.autograd.grad(sum(x.square().mean() for x in features), image)
    return [*(x.detach() for x in features), grad]
