"""The start that opens the gates of pixel attention."""
import math

import pytest
import torch
from torch.testing import assert_close

from mmrest import ResT, ResTV2
from mmrest.models import ResTAblation

FROM_SCRATCH = dict(type='FromScratch')
STD = math.sqrt(2 / 9)


def started(model, seed=0, **others):
    """Parameters after ``init_weights``, and the next random number."""
    torch.manual_seed(seed)
    model = model(**others)
    model.init_weights()
    return dict(model.state_dict()), torch.rand(())


@pytest.mark.parametrize('model, embeds', [
    (ResT, ['stem', 'patch_embed_2', 'patch_embed_3', 'patch_embed_4']),
    (ResTV2, ['stem', 'patch_2', 'patch_3', 'patch_4'])])
def test_the_four_convolutions_are_drawn_and_nothing_else_changes(model, embeds):
    (want, number), (found, later) = started(model), started(model, init_cfg=FROM_SCRATCH)
    assert number == later
    drawn = {f'{embed}.pos.pa_conv.weight' for embed in embeds}
    assert drawn == {name for name in want if not torch.equal(want[name], found[name])}
    for name in drawn:
        weight = found[name]
        n = weight.numel()  # four standard errors of a normal sample's deviation, and its mean
        assert_close(weight.std().item(), STD, rtol=4 / math.sqrt(2 * n), atol=0.)
        assert_close(weight.mean().item(), 0., rtol=0., atol=4 * STD / math.sqrt(n))
        assert weight.stride() == want[name].stride()
    first, second = (found[name] for name in sorted(drawn)[:2])
    assert not torch.equal(first[:64], second[:64])
    name = next(iter(drawn))
    assert torch.equal(started(model, init_cfg=FROM_SCRATCH)[0][name], found[name])
    assert not torch.equal(started(model, 1, init_cfg=FROM_SCRATCH)[0][name], found[name])


def test_a_model_without_pixel_attention_is_refused():
    model = ResTAblation('lite', position='gl', init_cfg=FROM_SCRATCH)
    with pytest.raises(ValueError, match='FromScratch: ResTAblation has no pixel attention'):
        model.init_weights()
