import pytest
import torch
from torch import nn
from torch.testing import assert_close

from benchmarks.published import Attention
from mmrest import EMSA
from mmrest.models.layers import DropPath, PixelAttention, image_to_tokens, tokens_to_image


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


@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('strides', ['contiguous', 'channels_last', 'transposed'])
def test_tokens_and_images_hold_the_same_values_in_safe_memory(batch, strides):
    """Safe: strides as freshly allocated, the batch's too, also where it is 1."""
    fresh = torch.randn(batch, 3, 5, 4)
    image = fresh.contiguous(memory_format=torch.channels_last)
    if strides == 'contiguous':
        image = fresh
    elif strides == 'transposed':  # stray stride for the batch where it is 1
        image = fresh.flatten(2).transpose(1, 2).contiguous().transpose(1, 2)
        image = image.reshape(fresh.shape)
    image = image.detach().requires_grad_()
    tokens = image_to_tokens(image)
    assert tokens.stride() == (60, 3, 1)
    assert_close(tokens[:, 7], image[:, :, 1, 3])  # token 7 of rows of 4 is (1, 3)
    back = tokens_to_image(tokens, (5, 4))
    assert back.stride() == (60, 1, 12, 3)
    assert_close(back, image)
    seen = []
    back.register_hook(lambda g: seen.append(g))
    tokens.register_hook(lambda g: seen.append(g))
    image.register_hook(lambda g: seen.append(g))
    weight = torch.randn(batch, 5, 4, 3).permute(3, 1, 2, 0).flatten(1).t().reshape(
        5, 4, batch, 3).permute(2, 3, 0, 1)
    (back * weight).sum().backward()
    assert seen[1].stride() == (60, 3, 1)
    assert seen[2].stride() == (60, 1, 12, 3)
    assert_close(image.grad, weight)


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    torch.manual_seed(0)
    module = DropPath(0.25)
    out = module(torch.ones(8000, 2, 3))
    kept = out[:, 0, 0] != 0
    assert_close(kept.double().mean().item(), 0.75, rtol=0.03, atol=0)
    assert_close(out, kept[:, None, None] * torch.full_like(out, 1 / 0.75))
    assert (module.eval()(torch.ones(8, 1)) == 1).all()
