import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmrest.ops import emsa_attention


def published(q, k, v, mix, bias, eps=1e-5):
    attn = q @ k.transpose(-2, -1) * q.shape[-1]**-0.5
    attn = nn.functional.conv2d(attn, mix[:, :, None, None], bias).softmax(-1)
    return nn.functional.instance_norm(attn, eps=eps) @ v


def draw(B, h, N, M, d, dtype=torch.double):
    torch.manual_seed(0)
    # Strides as they come from a linear layer's output.
    q = torch.randn(B, N, h, d, dtype=dtype).transpose(1, 2)
    k, v = torch.randn(2, B, M, h, d, dtype=dtype).transpose(2, 3).unbind()
    mix, bias = torch.randn(h, h, dtype=dtype), torch.randn(h, dtype=dtype)
    return [x.requires_grad_() for x in (q, k, v, mix, bias)]


@pytest.mark.parametrize('shape', [(2, 2, 63, 49, 16), (1, 3, 111, 60, 60), (2, 4, 1, 49, 8),
                                   (1, 8, 63, 1, 5), (3, 1, 7, 4, 2)])
def test_agrees_with_the_published_steps(shape):
    inputs = draw(*shape)
    got, want = emsa_attention(*inputs), published(*inputs)
    assert_close(got, want, rtol=1e-9, atol=1e-10)
    weight = torch.randn_like(got)
    for a, b in zip(torch.autograd.grad((got * weight).sum(), inputs),
                    torch.autograd.grad((want * weight).sum(), inputs)):
        assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_gradcheck():
    assert torch.autograd.gradcheck(emsa_attention, draw(1, 2, 5, 3, 2))


def test_a_map_of_one_element_is_zero():
    inputs = draw(2, 2, 1, 1, 4)
    out = emsa_attention(*inputs)
    assert not out.any()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.sum(), inputs))


def test_without_mixing_and_norm_it_is_attention():
    q, k, v, _, _ = draw(2, 2, 9, 5, 4)
    want = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
    assert_close(emsa_attention(q, k, v, normalize=False, scale=0.3), want)


def test_statistics_of_bfloat16_inputs_are_taken_in_float32():
    inputs = [x.detach() for x in draw(1, 2, 63, 49, 16)]
    low = [x.bfloat16() for x in inputs]
    got, want = emsa_attention(*low), published(*(x.double() for x in low))
    assert got.dtype == torch.bfloat16
    error = (got.double() - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert error < 0.02
