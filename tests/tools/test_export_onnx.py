"""tools/deployment/export_onnx.py: what it hands to mmrest.deploy, whose tests are its own."""
import importlib

import pytest
import torch

from mmrest.apis import build_model, read_config

from .conftest import ROOT

CONFIG = str(ROOT / 'configs/classification/rest_lite_digits.py')


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/deployment'))
    return importlib.import_module('export_onnx')


def test_the_model_with_its_weights(tool, tmp_path, monkeypatch, capsys):
    torch.save(build_model(read_config(CONFIG)).state_dict(), tmp_path / 'weights.pth')
    calls = []

    def export(model, *args):
        calls.append(args)
        wanted = torch.load(tmp_path / 'weights.pth')
        assert all(torch.equal(x, wanted[name]) for name, x in model.state_dict().items())
        return {'logits': 1.234e-5, 'logits of PyTorch': 0., 'pictures': 5.}

    monkeypatch.setattr(tool, 'export', export)
    args = [CONFIG, str(tmp_path / 'weights.pth'), 'c.onnx']
    tool.main(args)
    tool.main([*args, '--part', 'backbone', '--images', 'a.jpg', 'b.jpg'])
    assert 'c.onnx: logits of 5 pictures are at most 1.2e-05 of the' in capsys.readouterr().out
    for path, metadata, *_ in calls:
        assert path == 'c.onnx' and metadata['mean'].startswith('[123.675')
    assert [call[2:] for call in calls] == [
        (False, (), None), (True, ['a.jpg', 'b.jpg'], None)]


@pytest.mark.parametrize('options, wanted', [
    (['--half'], ([], None)),
    (['--int8', 'images', '--limit', '9'], (['images/a.png', 'images/b.png'], 9))])
def test_a_smaller_file(tool, tmp_path, monkeypatch, capsys, options, wanted):
    monkeypatch.chdir(tmp_path)
    torch.save(build_model(read_config(CONFIG)).state_dict(), 'weights.pth')
    (tmp_path / 'images').mkdir()
    for name in 'ab':
        (tmp_path / f'images/{name}.png').touch()
    calls = []

    class Smaller:
        sentence = 'as good'

        def __init__(self, cfg, int8, limit):
            calls.append((list(map(str, int8)), limit))

    monkeypatch.setattr(tool, 'Smaller', Smaller)
    monkeypatch.setattr(tool, 'sentence', lambda errors: 'right')
    monkeypatch.setattr(tool, 'export', lambda *args: calls.append(args[-1].sentence))
    tool.main([CONFIG, 'weights.pth', 'c.onnx', *options])
    assert calls == [wanted, 'as good']
    assert capsys.readouterr().out.endswith('c.onnx: right\nas good\n')


def test_mistakes_are_one_sentence(tool, tmp_path):
    with pytest.raises(SystemExit, match='none.pth.*no such file'):
        tool.main([CONFIG, 'none.pth', str(tmp_path / 'x.onnx')])
    with pytest.raises(SystemExit, match='2'):
        tool.main([CONFIG, 'none.pth', 'x.onnx', '--limit', '3'])
