"""Weights of whole models that fit and that do not, errors as sentences, names that moved."""
from importlib import import_module

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn
from torch.testing import assert_close

from mmrest import ResT
from mmrest.apis import build_model, check_fit, exit_on_user_error
from mmrest.engine import CheckFitHook
from mmrest.errors import MissingPackageError, UserError

ARCH = dict(embed_dims=(8, 16), depths=(1, 2), num_heads=(1, 2), sr_ratios=(2, 1))


@MODELS.register_module()
class Whole(nn.Module):
    """A backbone and a head."""

    def __init__(self, classes=3, backbone=None, data_preprocessor=None):
        super().__init__()
        self.backbone = backbone or ResT(ARCH, out_indices=None)
        self.head = nn.Linear(16, classes)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.head.bias.sum())


def save(path, model):
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def test_heads_may_differ_and_the_log_says_so(tmp_path, log):
    source = Whole(classes=5)
    path = save(tmp_path / 'a.pth', source)
    model = build_model(Config(dict(model=dict(type='Whole'))), path)
    assert_close(model.backbone.state_dict(), source.backbone.state_dict(), rtol=0, atol=0)
    said = log.getvalue()
    assert f'{path}: the backbone fits, and 0 of 2 other tensors' in said
    assert 'initial values: head.weight, head.bias' in said


def other_arch():
    return Whole(backbone=ResT(dict(ARCH, depths=(1, 1)), out_indices=None))


@pytest.mark.parametrize('source, words', [
    (lambda: other_arch().state_dict(), 'does not fit ResT.* it lacks stage2.1.norm1.weight'),
    (lambda: Whole().head.state_dict(), "no parameter whose name starts with prefix='back"),
    (lambda: Whole().backbone.state_dict(), "no parameter whose name starts with prefix='back"),
])
def test_a_backbone_that_does_not_fit_is_refused(source, words, tmp_path):
    torch.save(source(), tmp_path / 'a.pth')
    with pytest.raises(UserError, match=words):
        build_model(Config(dict(model=dict(type='Whole'))), tmp_path / 'a.pth')


def test_any_backbone():
    """Without a ResT, too: its own is all of what is called backbone."""
    source, other = Whole(backbone=nn.Linear(2, 2)), Whole(5, nn.Linear(2, 2))
    assert check_fit(other, source.state_dict(), 'a.pth').keys() == {
        'backbone.weight', 'backbone.bias'}
    other.backbone = nn.Linear(2, 3)
    with pytest.raises(UserError, match='Whole: it has no backbone.weight, backbone.bias'):
        check_fit(other, source.state_dict(), 'a.pth')
    with pytest.raises(UserError, match='it has no weight, bias of the same shape'):
        check_fit(nn.Linear(2, 2), dict(x=torch.ones(1)), 'a.pth')


@pytest.mark.parametrize('source, fits', [(Whole, True), (lambda: Whole(5), True),
                                          (other_arch, False)])
def test_a_run_does_not_start_from_another_backbone(source, fits, tmp_path):
    path = str(save(tmp_path / 'a.pth', source()))
    runner = Runner.from_cfg(Config(dict(
        model=dict(type='Whole'), work_dir=str(tmp_path), load_from=path, log_level='ERROR',
        experiment_name=tmp_path.name,
        train_dataloader=dict(batch_size=1, num_workers=0, dataset=[dict(inputs=0.)],
                              sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.)))))
    runner.register_hook(CheckFitHook())
    if not fits:
        with pytest.raises(UserError, match='does not fit ResT'):
            runner.load_or_resume()
    else:
        runner.load_or_resume()
        want = torch.load(path)['state_dict']['backbone.stem.conv1.weight']
        assert_close(runner.model.backbone.stem.conv1.weight.detach(), want, rtol=0, atol=0)


# Errors


MENDED = [UserError('so'), MissingPackageError('so'), FileNotFoundError('so'),
          PermissionError(13, 'so', 'name')]
KEPT = [OSError('so'), ValueError('so'), ImportError('so'), KeyError('so')]


@pytest.mark.parametrize('error', MENDED + KEPT, ids=repr)
def test_what_a_user_can_mend_is_a_sentence(error):

    @exit_on_user_error
    def main():
        raise error

    with pytest.raises(SystemExit if error in MENDED else type(error)) as raised:
        main()
    assert 'so' in str(raised.value)


@pytest.mark.parametrize('module, old, new', [
    ('safe_reading', 'load_safely', 'register_safe_loader'),
    ('apis', 'example', 'dummy_inputs'),
    ('datasets', 'make_config', 'own_data.make_config')])
def test_names_that_moved_work_and_warn(module, old, new):
    home, _, name = new.rpartition('.')
    with pytest.warns(DeprecationWarning, match=f'{module}.{old} is now .*{new}, and goes in'):
        found = getattr(import_module(f'mmrest.{module}'), old)
    assert found is getattr(import_module(f'mmrest.{home or module}'), name)
    with pytest.raises(ImportError, match='none'):
        exec(f'from mmrest.{module} import none')
