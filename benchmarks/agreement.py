"""Compares mmrest with the port of the published model before anything is measured."""
import torch

from benchmarks.published import PublishedResT, published_names
from benchmarks.publishedv2 import PublishedResTV2
from mmrest import ResT, ResTV2

# Image height and width for each arch. Small's attention takes more than one block.
SIZES = {'lite': (72, 104), 'small': (512, 656), 'base': (72, 104), 'large': (72, 104),
         'v2 tiny': (72, 104)}


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
    """Compare features and the image's gradient, in float64, on a GPU in float32 too.

    Triton's kernels take float32, but not float64. Convolutions in TF32, PyTorch's default,
    would differ by more than is allowed here.

    Returns:
        float: Largest float64 difference, relative to the largest value.

    Raises:
        AssertionError: They do not agree.
    """
    worst = 0.
    tolerances = {torch.float64: 1e-6}
    if device == 'cuda':
        tolerances[torch.float32] = 2e-3
    for arch, size in sizes.items():
        models = pair(arch)
        for dtype, tolerance in tolerances.items():
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
