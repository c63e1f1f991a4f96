"""Nothing is kept from step to step, at varying sizes of images."""
import gc
import itertools

import pytest
import torch

from mmrest import ResT

from ..tiny_data import ARCH


def live():
    """Number of tensors that live, and bytes of their storages, each counted once."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return len(tensors), sum(storages.values())


@pytest.mark.parametrize('training', [True, False], ids=['training', 'inference'])
def test_no_tensor_stays(training):
    torch.manual_seed(0)
    model = ResT(ARCH, out_indices=None, drop_path_rate=0.1).train(training)
    optimizer = torch.optim.AdamW(model.parameters())

    def step(height, width):
        with torch.set_grad_enabled(training):
            features = model(torch.randn(2, 3, height, width))
        if training:
            optimizer.zero_grad()
            sum(x.square().mean() for x in features).backward()
            optimizer.step()

    step(64, 64)  # the states of the optimizer are made here
    before = live()
    assert before[0] > len(list(model.parameters()))
    for height, width in itertools.product((33, 64, 127), repeat=2):
        step(height, width)
    assert live() == before
