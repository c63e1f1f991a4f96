"""mmrest held against the published formulation, before anything is measured."""
import torch

from benchmarks.models import REST
from benchmarks.published import PublishedResT
from mmrest import ResT

# Height and width: of Small so large that its attention takes more than one block.
SIZES = {'lite': (72, 104), 'small': (512, 656), 'base': (72, 104), 'large': (72, 104)}


def pair(arch):
    """Both models with the same random weights, in eval mode."""
    torch.manual_seed(0)
    published, ours = PublishedResT(arch), ResT(arch, backend='auto')
    state = {
        name: torch.randn_like(value) * 0.1 + value if value.is_floating_point() else value
        for name, value in published.state_dict().items() if 'running' not in name
    }
    published.load_state_dict(state, strict=False)
    ours.load_state_dict({('norm4.' + name[5:] if name.startswith('norm.') else name): value
                          for name, value in published.state_dict().items()})
    return published.eval(), ours.eval()


def check(device='cpu', sizes=SIZES):
    """Largest difference of features and of the image's gradient, relative to the largest.

    In float64; on a GPU in float32 too, which is what Triton's kernels take.

    Raises:
        AssertionError: They do not agree.
    """
    worst = 0.
    dtypes = {torch.float64: 1e-6}
    if device == 'cuda':
        dtypes[torch.float32] = 2e-3
    for arch in REST.values():
        if arch not in sizes:
            continue
        models = pair(arch)
        for dtype, tolerance in dtypes.items():
            # Two images: of one, PyTorch's BatchNorm gives published layouts a wrong gradient.
            image = torch.randn(2, 3, *sizes[arch], device=device, dtype=dtype)
            outs = [run(model.to(device, dtype), image) for model in models]
            for want, got in zip(*outs):
                largest = want.abs().max().item()
                torch.testing.assert_close(
                    got, want, rtol=tolerance, atol=max(1e-8, tolerance / 1e2) * largest)
                if dtype == torch.float64:
                    worst = max(worst, (got - want).abs().max().item() / largest)
    return worst


def run(model, image):
    image = image.clone().requires_grad_()
    features = model(image)
    grad, = torch.autograd.grad(sum(x.square().mean() for x in features), image)
    return [*(x.detach() for x in features), grad]
