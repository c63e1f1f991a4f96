"""Images of any size: finite features, equal to those of the image alone and to the port's."""
import math
import random

import pytest
import torch
from torch.testing import assert_close

from benchmarks.published import PublishedResT, published_names
from mmrest import ResT
from mmrest.models import ResTAblation

from .. import golden

# With the largest number of pixels in a batch: attention maps grow with its square.
ARCHS = [
    (dict(embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2), sr_ratios=(2, 1)), 2**18),
    (dict(embed_dims=(8, 12, 24), depths=(1, 2, 1), num_heads=(1, 3, 4), sr_ratios=(5, 3, 1)),
     2**19),
    (dict(embed_dims=(4, 8, 16, 32), depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8),
          sr_ratios=(8, 4, 2, 1)), 2**20),
    (dict(embed_dims=(6, 10), depths=(1, 1), num_heads=(2, 5), sr_ratios=(7, 4)), 2**19),
    (dict(embed_dims=(16, ), depths=(2, ), num_heads=(4, ), sr_ratios=(1, ),
          mlp_ratios=(0.5, )), 2**16),
]
PUBLISHED = [('lite', 2**17), ('small', 2**17)]


def build(arch, stem='rest'):
    """A model whose weights are large enough for every branch to change the features."""
    torch.manual_seed(0)
    model = ResTAblation(arch, out_indices=None, stem=stem).eval()
    for name, p in model.named_parameters():
        with torch.no_grad():
            if p.ndim > 1:
                p.mul_(5)
            elif 'bias' in name:
                p.normal_(std=0.1)
    for name, value in model.named_buffers():
        if 'running' in name:
            value.uniform_(0.5, 1.5)
    return model


def least_side(arch, stem):
    """The smallest image: 4 pixels for PVT's stem, 2 cells where a reduction is odd."""
    side = 4 if stem == 'pvt' else 1
    settings = ResT.arch_zoo[arch] if isinstance(arch, str) else arch
    for stage, sr_ratio in enumerate(settings['sr_ratios']):
        if sr_ratio > 1 and sr_ratio % 2:
            side = max(side, 4 * 2**stage * 2)
    return side


def drawn(count, largest, seed=0):
    """Sizes from 1 up, log-uniform; a tenth of them have one side of the least size."""
    draw = random.Random(seed)
    cases = []
    while len(cases) < count:
        arch, pixels = draw.choice(ARCHS + (PUBLISHED if draw.random() < 0.2 else []))
        stem = draw.choice(['rest', 'rest', 'resnet', 'pvt'])
        least = least_side(arch, stem)
        sides = [round(math.exp(draw.uniform(math.log(least), math.log(largest))))
                 for _ in range(2)]
        if draw.random() < 0.1:
            sides[draw.randrange(2)] = least
        batch = draw.randint(1, 3)
        if batch * sides[0] * sides[1] <= pixels:
            cases.append((arch, stem, batch, *sides))
    return cases


def check(model, batch, height, width):
    """The features are finite, bit for bit the same again, and those of each image alone.

    The last is checked in float64: in float32 the rounding depends on the batch, and the norm
    multiplies it by up to 316.
    """
    torch.manual_seed(height * 10007 + width)
    images = torch.randn(batch, 3, height, width)
    with torch.no_grad():
        for x, again in zip(model.float()(images), model(images)):
            assert torch.isfinite(x).all()
            assert torch.equal(x, again)
        if batch == 1:
            return
        images = images.double()
        together = model.double()(images)
        i = width % batch
        for x, alone in zip(together, model(images[i:i + 1])):
            # The output norm makes values of about 1.
            assert_close(x[i:i + 1], alone, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('count, largest', [
    (12, 300), pytest.param(500, 1500, marks=pytest.mark.slow)])
def test_random_sizes(count, largest):
    models = {}
    for arch, stem, batch, height, width in drawn(count, largest):
        key = f'{arch} {stem}'
        if key not in models:
            models[key] = build(arch, stem)
        print(f'{arch}, {stem}, {batch} x {height} x {width}')
        check(models[key], batch, height, width)


def agree(got, want):
    largest = max(b.abs().max().item() for b in want)
    for number, (a, b) in enumerate(zip(got, want)):
        # The gradient of the keys' bias is zero but for rounding.
        atol = max(1e-8 * b.abs().max().item(), 1e-11 * largest)
        assert_close(a, b, rtol=1e-7, atol=atol,
                     msg=lambda text, number=number: f'{number}: {text}')


def gradients(model, image):
    """Features, and gradients of the first image and of all parameters, by name."""
    image = image.detach().requires_grad_()
    features = [x[:1] for x in model(image)]
    names, params = zip(*sorted(published_names(dict(model.named_parameters())).items()))
    grads = torch.autograd.grad(golden.loss(features), [image, *params])
    return [*features, grads[0][:1], *grads[1:]], names


@pytest.mark.parametrize('count, largest', [
    (3, 100), pytest.param(50, 400, marks=pytest.mark.slow)])
def test_the_published_numbers_at_random_sizes(count, largest):
    """Features and all gradients in float64, in eval mode.

    A batch of 1 is given to the port twice: PyTorch's BatchNorm returns a wrong gradient at
    batch 1 for the published memory layouts.
    """
    draw = random.Random(1)
    torch.manual_seed(0)
    published, ours = PublishedResT('lite').double().eval(), build('lite').double()
    published.load_state_dict(published_names(ours.state_dict()))
    seen = set()
    for _ in range(count):
        # With 33 pixels the smallest map has more than one element: InstanceNorm needs that.
        height, width = (round(math.exp(draw.uniform(math.log(33), math.log(largest))))
                         for _ in range(2))
        batch = draw.randint(1, 3)
        seen.add(batch)
        image = torch.randn(batch, 3, height, width, dtype=torch.double)
        twice = torch.cat([image, image]) if batch == 1 else image
        got, names = gradients(ours, image)
        want, want_names = gradients(published, twice)
        assert names == want_names
        print(f'{batch} x {height} x {width}')
        agree(got, want)
    assert 1 in seen
