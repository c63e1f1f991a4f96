"""16 bits, large inputs, first steps: what is finite in float32 stays finite."""
import pytest
import torch
from torch import nn

from benchmarks.published import Attention
from mmrest import EMSA, ResT
from mmrest.ops import emsa_attention

ARCH = dict(embed_dims=(16, 32, 64), depths=(1, 1, 1), num_heads=(1, 2, 4), sr_ratios=(4, 2, 1))
TORCH = tuple(int(part) for part in torch.__version__.split('.')[:2])
needs_half = pytest.mark.skipif(TORCH < (2, 4), reason='float16 on a CPU needs torch 2.4')
needs_triton = pytest.mark.skipif(TORCH < (2, 7), reason='needs Triton 3.3, with torch 2.7')
HALF = pytest.param(torch.float16, marks=needs_half)
BACKENDS = ['reference', 'chunked', pytest.param('triton', marks=needs_triton)]


class Classifier(nn.Module):

    def __init__(self, **kwargs):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = ResT(ARCH, **dict(dict(out_indices=(2, )), **kwargs))
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.backbone(x)[-1].mean((2, 3)))


def data(batch, generator):
    """Images of ten classes, each a colour at a place, and their labels."""
    labels = torch.randint(10, (batch, ), generator=generator)
    images = torch.randn(batch, 3, 48, 48, generator=generator)
    for image, label in zip(images, labels.tolist()):
        image[label % 3, :, 4 * label:4 * label + 8] += 2
    return images, labels


def losses(steps, rate, dtype=None, pure=False, schedule=True):
    """The losses of a training run from scratch, or None if anything is not finite.

    ``dtype`` is autocast's, or the model's own if ``pure``.
    """
    model = Classifier()
    if pure:
        model.to(dtype)
    # AdamW's eps is zero in float16.
    optimizer = torch.optim.AdamW(
        model.parameters(), rate, weight_decay=0.05, eps=1e-4 if pure else 1e-8)
    scaler = torch.amp.GradScaler('cpu', enabled=dtype == torch.float16) if hasattr(
        torch.amp, 'GradScaler') and not pure else None
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(steps):
        if schedule:
            optimizer.param_groups[0]['lr'] = rate * min((i + 1) / (steps / 4), 1)
        images, labels = data(16, generator)
        images = images.to(dtype) if pure else images
        with torch.autocast('cpu', dtype=dtype or torch.bfloat16,
                            enabled=dtype is not None and not pure):
            logits = model(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        if scaler is None:
            loss.backward()
            grads_finite = all(torch.isfinite(p.grad).all() for p in model.parameters())
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            grads_finite = scaler.get_scale() >= 1 if dtype == torch.float16 else True
        if not grads_finite or not torch.isfinite(loss) or not all(
                torch.isfinite(p).all() for p in model.parameters()):
            return None
        found.append(loss.item())
    return found


@pytest.mark.parametrize('rate', [5e-4, 2e-3])
def test_16_bits_train_where_float32_does(rate, many):
    """float32 learns these images at both rates; with 16 bits nothing may become NaN."""
    steps = many(8, 120)
    exact = losses(steps, rate)
    assert exact is not None
    runs = [dict(dtype=torch.bfloat16), dict(dtype=torch.bfloat16, pure=True)]
    if TORCH >= (2, 4):
        runs.append(dict(dtype=torch.float16))
    for run in runs:
        found = losses(steps, rate, **run)
        assert found is not None, run
        if steps > 100:
            tail = [sum(x[-20:]) / 20 for x in (exact, found)]
            assert tail[0] < 1.5 and tail[1] < tail[0] + 0.7, (run, tail)


def test_the_first_steps_at_the_papers_rate(many):
    """The recipe of ImageNet (5e-4 at 512 images, AdamW, weight decay 0.05), under autocast."""
    found = losses(many(10, 200), 5e-4, torch.bfloat16)
    assert found is not None


INPUTS = dict(
    zeros=lambda shape: torch.zeros(shape),
    large=lambda shape: torch.full(shape, 1e4),
    negative=lambda shape: torch.full(shape, -1e4),
    noise=lambda shape: 1e4 * torch.randn(shape),
    grey=lambda shape: torch.full(shape, 0.5),
    one_pixel=lambda shape: torch.zeros(shape).index_fill_(3, torch.tensor([5]), 1e4),
)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('kind', INPUTS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_inputs_at_the_edges(kind, backend, dtype):
    torch.manual_seed(0)
    arch = dict(embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2), sr_ratios=(2, 1))
    model = ResT(arch, out_indices=None, backend=backend).train()
    for training in (True, False):
        image = INPUTS[kind]((2, 3, 24, 40)).requires_grad_()
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype != torch.float32):
            features = model.train(training)(image)
        sum((x.float()**2 * torch.arange(x.shape[3])).mean() for x in features).backward()
        for x in (*features, image.grad, *(p.grad for p in model.parameters())):
            assert torch.isfinite(x).all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, HALF])
@pytest.mark.parametrize('kind', ['zeros', 'noise', 'grey'])
def test_models_of_16_bits(kind, dtype):
    """The model and the image have 16 bits; an input of 1e4 would overflow in float16."""
    torch.manual_seed(0)
    model = Classifier(out_indices=None).to(dtype).eval()
    scale = 1e-2 if dtype == torch.float16 else 1
    image = (scale * INPUTS[kind]((2, 3, 40, 56))).to(dtype).requires_grad_()
    out = model(image)
    out.float().square().sum().backward()
    for x in (out, image.grad, *(p.grad for p in model.parameters() if p.grad is not None)):
        assert torch.isfinite(x).all()


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, HALF])
def test_the_operator_at_the_edges(backend, dtype, many):
    """Attention maps from uniform to the last bit to one-hot."""
    torch.manual_seed(0)
    for M in many((1, 49), (1, 2, 49)):
        # In float16 a score must stay below 65504.
        for size in (0, 1e-8, 1e-3, 1, 30, 1e2 if dtype == torch.float16 else 1e4):
            q, k, v = (torch.randn(1, 2, n, 8) for n in (17, M, M))
            inputs = [(size * q).to(dtype), k.to(dtype), v.to(dtype), torch.randn(2, 2),
                      torch.randn(2)]
            inputs = [x.requires_grad_() for x in inputs]
            out = emsa_attention(*inputs, backend=backend)
            grads = torch.autograd.grad(out.float().square().sum(), inputs)
            for x in (out, *grads):
                assert torch.isfinite(x).all(), (M, size)


@pytest.mark.parametrize('bias', [0, 1, 10])
def test_a_large_bias_of_transform_conv_costs_no_digits(bias):
    """Softmax ignores it. The weight is a difference of outputs that contain it."""
    torch.manual_seed(0)
    module = EMSA(64, 8).requires_grad_(False)
    for p in module.parameters():
        nn.init.normal_(p, std=0.15)
    nn.init.normal_(module.transform_conv.weight, std=0.02)
    module.transform_conv.bias.normal_().mul_(bias)
    port = Attention(64, 8, 1)
    port.load_state_dict(module.state_dict())
    x = torch.randn(2, 196, 64)
    with torch.autocast('cpu', torch.bfloat16):
        got, published = module(x, (14, 14)), port(x, 14, 14)
    single = module(x, (14, 14))
    want = port.double()(x.double(), 14, 14)
    assert (got - want).norm() <= 2 * (published - want).norm()
    assert (single - want).norm() <= 1e-6 * want.norm()


def test_a_nan_stays_in_its_image():
    """There it is not hidden."""
    torch.manual_seed(0)
    model = Classifier(out_indices=None).eval()
    images = torch.randn(3, 3, 40, 56)
    want = model.backbone(images)
    images[1, 0, 3, 3] = float('nan')
    for x, y in zip(model.backbone(images), want):
        assert torch.isnan(x[1]).any()
        torch.testing.assert_close(x[::2], y[::2])
