"""Mixed precision on a CPU."""
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch.testing import assert_close

from mmrest.engine import cpu_amp, set_amp


def test_forward_in_bfloat16_and_a_step_in_float32():
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1 + 2**-10, 1.]])  # 1 in bfloat16
    wrapper = build_optim_wrapper(
        model, dict(type='CpuAmpOptimWrapper', optimizer=dict(type='SGD', lr=0.5)))
    with wrapper.optim_context(model):
        out = model(torch.tensor([[3., 2.]]))
    assert out.dtype == torch.bfloat16 and out.item() == 5
    wrapper.update_params(out.float().sum())
    want = torch.tensor([[1 + 2**-10 - 1.5, 0.]])
    assert_close(model.weight.data, want, rtol=0, atol=0)
    assert model(torch.ones(1, 2)).dtype == torch.float32


@pytest.mark.parametrize('device, known, want', [
    ('cpu', True, dict(type='CpuAmpOptimWrapper', clip_grad=None)),
    ('cuda', False, dict(type='AmpOptimWrapper', clip_grad=None, loss_scale='dynamic',
                         dtype='float16'))])
def test_what_amp_writes(device, known, want, monkeypatch):
    monkeypatch.setattr(cpu_amp, 'get_device', lambda: device)
    monkeypatch.setattr(cpu_amp, 'cpu_has_bfloat16', lambda: known)
    cfg = Config(dict(optim_wrapper=dict(
        type='AmpOptimWrapper', clip_grad=None, loss_scale='dynamic', dtype='float16')))
    set_amp(cfg)
    assert cfg.optim_wrapper == want
