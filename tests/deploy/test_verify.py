"""What the check of exports lets through, and what it refuses."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from torch import nn

from mmrest.deploy import verify

IMAGES = torch.zeros(1, 3, 90, 120, dtype=torch.uint8)


def test_label_maps(monkeypatch):
    torch.manual_seed(0)
    exact = torch.rand(5, 100, 100, dtype=torch.float64)
    labels = exact.argmax(0)
    # mm's float32 is 0.01 off somewhere, and in 30 pixels another class is 0.03 behind.
    plain = exact.float()
    plain[0, 99, 99] += 0.01
    behind = (labels[:1, :30] + 1) % 5
    best = exact[:, 0, :30].amax(0)
    exact[:, 0, :30].scatter_(0, behind, (best - 0.03)[None])
    plain[:, 0, :30] = exact[:, 0, :30].float()
    monkeypatch.setattr(verify, 'predict', lambda *_, exact=False, both=(plain, exact): [
        SimpleNamespace(pred_sem_seg=PixelData(data=labels[None]),
                        seg_logits=PixelData(data=both[exact]))])
    found = labels[None].numpy().copy()
    found[0, 1, :9] = (found[0, 1, :9] + 1) % 5
    assert verify.check_label_maps(None, IMAGES, [found]) == {
        'pixels wrong': pytest.approx(9e-4), 'classes': 5, 'near-ties': 0}
    found[0, 0, :30] = behind
    assert verify.check_label_maps(None, IMAGES, [found]) == {
        'pixels wrong': pytest.approx(9e-4), 'classes': 5, 'near-ties': 30}
    found[0, 1, 9:12] = (found[0, 1, 9:12] + 1) % 5
    with pytest.raises(ValueError, match='labels: 1.2e-03 off'):
        verify.check_label_maps(None, IMAGES, [found])


@pytest.mark.parametrize('plain, found, passes', [
    (0., 0.9e-4, True), (0., 1.1e-4, False), (1e-3, 1.9e-3, True), (1e-3, 2.1e-3, False),
    (0.04, 0.049, True), (0.04, 0.051, False), (0., np.nan, False)])
def test_features_may_be_twice_as_far_off_as_pytorchs(plain, found, passes):
    x, rest = torch.ones(1, 3, 4, 5), nn.Identity()
    rest.register_forward_hook(
        lambda module, args, x: [x + (plain if x.dtype == torch.float32 else 0)])
    outputs = [(x + found).numpy()]
    if passes:
        assert verify.check_features(rest, x, outputs)['features'] == pytest.approx(
            found, rel=1e-2)
    else:
        with pytest.raises(ValueError, match='features: .* off'):
            verify.check_features(rest, x, outputs)


def test_pictures_from_files(tmp_path):
    from PIL import Image
    paths = [tmp_path / f'{i}.png' for i in range(2)]
    for i, path in enumerate(paths):
        Image.new('RGB', (50, 40), (200, 10 * i, 0)).save(path)
    images = verify.pictures((3, 20, 30), paths, first=1)
    assert images.shape == (3, 3, 20, 30) and images.dtype == torch.uint8
    assert images[:, :, 5, 5].tolist() == [[200, 10, 0], [200, 0, 0], [200, 10, 0]]
    assert not torch.equal(verify.pictures((1, 20, 30)), verify.pictures((1, 20, 30), first=1))


@pytest.mark.parametrize('errors, words', [
    ({'pixels wrong': 1e-4, 'classes': 5, 'near-ties': 7.},
     'classes of pixels in 5 pictures: 0.01% differ from mm, 7 others are near-ties'),
    (dict({'near-ties': 2.}, boxes=57., px=1.23e-3, score=4e-6, mask=0.),
     '57 boxes in 5 pictures, 2 of them near-ties, differ from mm by at most 1.2e-03 px and '
     '4.0e-06 of score, masks in 0.00% of the pixels')])
def test_one_line_says_what_was_compared(errors, words):
    assert verify.sentence(dict(errors, pictures=5.)) == words
