import pytest
import torch
from torch.testing import assert_close

from mmrest.models.layers import (
    DropPath,
    channels_last,
    image_to_tokens,
    tokens_to_image,
)


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
        grad, = torch.autograd.grad(image_to_tokens(image.requires_grad_()), image, tokens)
        assert grad.stride() == (60, 1, 12, 3)  # else BatchNorm's may be wrong for one image
        back = tokens_to_image(tokens, (5, 4))
        assert back.stride() == (60, 1, 12, 3)
        assert_close(back, image)
        assert_close(channels_last(image), image)
        assert channels_last(image).is_contiguous(memory_format=torch.channels_last)


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    torch.manual_seed(0)
    module = DropPath(0.25)
    out = module(torch.ones(8000, 2, 3))
    kept = out[:, 0, 0] != 0
    assert_close(kept.double().mean().item(), 0.75, rtol=0.03, atol=0)
    assert_close(out, kept[:, None, None] * torch.full_like(out, 1 / 0.75))
    assert (module.eval()(torch.ones(8, 1)) == 1).all()
