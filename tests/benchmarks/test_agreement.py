import subprocess
import sys

import pytest

from benchmarks import agreement, page, published, run
from benchmarks.agreement import check
from mmrest.ops.emsa import chunked

SIZES = dict(lite=(72, 104), base=(40, 56))


def test_it_goes_red_when_the_published_model_is_another(monkeypatch):
    assert check('cpu', SIZES) < 1e-8
    right = published.attention
    monkeypatch.setattr(published, 'attention', lambda *args: 1.001 * right(*args))
    with pytest.raises(AssertionError):
        check('cpu', SIZES)


def test_it_goes_red_when_mmrest_is_wrong_in_backward_alone(monkeypatch):
    right = chunked.chunked_backward

    def wrong(*args):
        dq, dk, dv, dmix = right(*args)
        return 1.001 * dq, dk, dv, dmix

    monkeypatch.setattr(chunked, 'chunked_backward', wrong)
    with pytest.raises(AssertionError):
        check('cpu', dict(lite=SIZES['lite']))


def test_small_takes_more_than_one_block():
    """Of four threads, too."""
    H, W = (-(-side // 8) for side in agreement.SIZES['small'])  # stage 2: 2 heads, s = 4
    map_elements = 2 * H * W * -(-H // 4) * -(-W // 4)
    assert map_elements > 4 * chunked.BLOCK


def test_nothing_is_measured_while_it_is_red(monkeypatch, tmp_path, capsys):
    def red(device):
        raise AssertionError('red')

    monkeypatch.setattr(agreement, 'check', red)
    monkeypatch.setattr(run, 'measure_apart', lambda case: pytest.fail('measured'))
    monkeypatch.setattr(page, 'write', lambda *args: pytest.fail('written'))
    monkeypatch.setattr(run, 'RESULTS', tmp_path)
    monkeypatch.setattr(sys, 'argv', ['run.py', '--select', 'cpu'])
    with pytest.raises(AssertionError, match='red'):
        run.main()
    assert not [*tmp_path.iterdir()] and not capsys.readouterr().out


def test_what_is_missing_is_said():
    done = subprocess.run([sys.executable, str(run.ROOT / 'benchmarks/run.py')], text=True,
                          capture_output=True)
    assert done.returncode and '--select' in done.stderr
