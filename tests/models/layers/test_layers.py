import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from benchmarks.published import Attention
from mmrest import EMSA
from mmrest.models.layers import (
    DropPath,
    PixelAttention,
    channels_last,
    image_to_tokens,
    tokens_to_image,
)


@pytest.mark.parametrize('num_heads, sr_ratio, hw', [
    (1, 8, (17, 30)), (2, 4, (9, 13)), (4, 2, (7, 10)), (8, 1, (5, 3)), (3, 3, (2, 5))])
def test_emsa_is_the_papers(num_heads, sr_ratio, hw):
    torch.manual_seed(0)
    module = EMSA(24, num_heads, sr_ratio).double()
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    x = torch.randn(2, hw[0] * hw[1], 24, dtype=torch.double)
    port = Attention(24, num_heads, sr_ratio).double()
    port.load_state_dict(module.state_dict())
    results = []
    for attn, size in ((module, (hw, )), (port, hw)):
        leaf = x.clone().requires_grad_()
        out = attn(leaf, *size)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        (out * weight).sum().backward()
        results.append([out, leaf.grad] + [p.grad for p in attn.parameters()])
    # Some gradients (the key's bias) are zero but for rounding, which the largest sets.
    scale = max(want.abs().max().item() for want in results[1])
    for got, want in zip(*results):
        assert_close(got, want, rtol=1e-7, atol=1e-12 * scale)


def test_emsa_checks_its_heads():
    with pytest.raises(ValueError, match='embed_dims=10 .* num_heads=4'):
        EMSA(10, 4)


def test_pixel_attention_is_equation_8():
    module = PixelAttention(5).double()
    x = torch.randn(2, 5, 6, 7, dtype=torch.double)
    conv = torch.zeros_like(x)
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    for dy in range(3):
        for dx in range(3):
            window = padded[:, :, dy:dy + 6, dx:dx + 7]
            conv += module.pa_conv.weight[:, 0, dy, dx, None, None] * window
    conv += module.pa_conv.bias[:, None, None]
    assert_close(module(x), x / (1 + (-conv).exp()))


def strides_of(x):
    """The same values in other memory, the last two with a stray stride for a batch of 1."""
    tokens = x.flatten(2).transpose(1, 2).contiguous()
    return [
        x.contiguous(), x.contiguous(memory_format=torch.channels_last),
        x[:, :, :, None].expand(-1, -1, -1, 2, -1)[:, :, :, 1],
        tokens.transpose(1, 2).reshape(x.shape),
        x.flatten(2).contiguous().transpose(1, 2).reshape(
            len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)]


@pytest.mark.parametrize('batch', [1, 3])
def test_tokens_and_images_hold_the_same_values_in_fresh_memory(batch):
    for image in strides_of(torch.randn(batch, 3, 5, 4)):
        tokens = image_to_tokens(image)
        assert tokens.stride() == (60, 3, 1)
        assert_close(tokens[:, 7], image[:, :, 1, 3])  # token 7 of rows of 4 is (1, 3)
        back = tokens_to_image(tokens, (5, 4))
        assert back.stride() == (60, 1, 12, 3)
        assert_close(back, image)
        assert_close(channels_last(image), image)
        assert channels_last(image).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('training', [True, False])
def test_batch_norms_between_them_have_right_gradients(training):
    """At batch 1 PyTorch's are wrong for a stray stride, as the last lines show."""
    norm = nn.BatchNorm2d(3).double().train(training)
    nn.init.normal_(norm.weight)
    image, grad = torch.randn(2, 1, 3, 5, 4, dtype=torch.double)
    twice = image.repeat(2, 1, 1, 1).requires_grad_()
    want = torch.autograd.grad(norm(twice), twice, grad.repeat(2, 1, 1, 1))[0][:1]

    def gradient(function, x, grad):
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(function(leaf), leaf, grad)[0]

    def from_tokens(x):
        return norm(tokens_to_image(x, (5, 4)))

    def to_tokens(x):
        return image_to_tokens(norm(channels_last(x)))

    for x, g in itertools.product(strides_of(image), strides_of(grad)):
        tokens, g_tokens = x.flatten(2).transpose(1, 2), g.flatten(2).transpose(1, 2)
        assert_close(gradient(to_tokens, x, g_tokens), want)
        assert_close(gradient(from_tokens, tokens, g), want.flatten(2).transpose(1, 2))
    stray = strides_of(image)[3]
    assert (gradient(norm, stray, grad) - want).abs().max() > 0.1


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    torch.manual_seed(0)
    module = DropPath(0.25)
    out = module(torch.ones(8000, 2, 3))
    kept = out[:, 0, 0] != 0
    assert_close(kept.double().mean().item(), 0.75, rtol=0.03, atol=0)
    assert_close(out, kept[:, None, None] * torch.full_like(out, 1 / 0.75))
    assert (module.eval()(torch.ones(8, 1)) == 1).all()
