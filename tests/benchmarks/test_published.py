import numpy as np
import pytest
import torch
from torch.testing import assert_close

from benchmarks.published import PublishedResT

from .. import golden


@pytest.mark.parametrize('name', ['rest_lite_2x3x224x224_7', 'rest_lite_1x3x160x224_8'])
def test_the_port_agrees_with_the_golden_files(name):
    """Twice the image where the batch is 1, as the golden files were drawn: PyTorch's BatchNorm
    returns a wrong gradient there, for the memory layouts of the published code."""
    gold = np.load(golden.DATA / f'{name}.npz')
    model = PublishedResT('lite').double().eval()
    missing, unexpected = model.load_state_dict(golden.draw_weights('lite'), strict=False)
    assert not missing and set(unexpected) == {'head.weight', 'head.bias'}
    image = golden.draw_image(gold).requires_grad_()
    features = model(torch.cat([image, image]) if len(image) == 1 else image)
    features = [x[:len(image)] for x in features]
    for i, x in enumerate(features):
        got = x.detach().flatten()[torch.from_numpy(gold[f'idx{i}'])]
        assert_close(got, torch.from_numpy(gold[f'val{i}']), rtol=1e-9, atol=1e-9)
    golden.loss(features).backward()
    got = image.grad.flatten()[torch.from_numpy(gold['gidx'])]
    want = torch.from_numpy(gold['gval'])
    assert_close(got, want, rtol=0, atol=1e-9 * want.abs().max().item())
