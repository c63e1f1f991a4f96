"""tools/deployment/export_onnx.py: what it hands to mmrest.deploy, whose tests are its own."""
import importlib
from types import SimpleNamespace

import pytest
import torch

from mmrest.apis import build_model, read_config

from .conftest import ROOT

CONFIG = str(ROOT / 'configs/classification/rest_lite_digits.py')


@pytest.fixture
def tool(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / 'tools/deployment'))
    return importlib.import_module('export_onnx')


@pytest.mark.parametrize('options, wanted', [
    ([], (False, (), None)),
    (['--part', 'backbone', '--images', 'a.jpg', 'b.jpg'], (True, ['a.jpg', 'b.jpg'], None)),
    (['--half'], (False, (), ([], None))),
    (['--int8', 'images', '--limit', '9'], (False, (), (['images/a.png', 'images/b.png'], 9)))])
def test_the_model_with_its_weights_and_options(options, wanted, tool, tmp_path, monkeypatch,
                                                capsys):
    model = build_model(read_config(CONFIG))
    torch.save(model.state_dict(), 'weights.pth')
    (tmp_path / 'images').mkdir()
    for name in 'ab':
        (tmp_path / f'images/{name}.png').touch()

    def export(found, path, metadata, part, images, smaller):
        assert all(torch.equal(x, found.state_dict()[name])
                   for name, x in model.state_dict().items())
        assert path == 'c.onnx' and metadata['mean'].startswith('[123.675')
        assert (part, images, smaller and smaller.args) == wanted
        return {'logits': 1.234e-5, 'logits of PyTorch': 0., 'pictures': 5.}

    monkeypatch.setattr(tool, 'export', export)
    monkeypatch.setattr(tool, 'Smaller', lambda cfg, int8, limit: SimpleNamespace(
        sentence='as good', args=(list(map(str, int8)), limit)))
    tool.main([CONFIG, 'weights.pth', 'c.onnx', *options])
    said = capsys.readouterr().out
    assert 'c.onnx: logits of 5 pictures are at most 1.2e-05 of the' in said
    assert said.endswith('\nas good\n') == bool(wanted[-1])


def test_mistakes_are_one_sentence(tool):
    with pytest.raises(SystemExit, match='none.pth.*no such file'):
        tool.main([CONFIG, 'none.pth', 'x.onnx'])
    with pytest.raises(SystemExit, match='2'):
        tool.main([CONFIG, 'none.pth', 'x.onnx', '--limit', '3'])
