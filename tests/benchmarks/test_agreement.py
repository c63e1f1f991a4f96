import sys

import pytest

from benchmarks import agreement, page, published, run
from benchmarks.agreement import check
from mmrest.ops.emsa import chunked

SIZES = {'lite': (72, 104), 'base': (40, 56), 'v2 tiny': (40, 56)}


def test_a_different_published_model_is_noticed(monkeypatch):
    assert check('cpu', SIZES) < 1e-8
    right = published.attention
    monkeypatch.setattr(published, 'attention', lambda *args: 1.001 * right(*args))
    with pytest.raises(AssertionError):
        check('cpu', dict(lite=SIZES['lite']))


def test_an_error_in_backward_alone_is_noticed(monkeypatch):
    right = chunked.chunked_backward

    def wrong(*args):
        dq, dk, dv, dmix = right(*args)
        return 1.001 * dq, dk, dv, dmix

    monkeypatch.setattr(chunked, 'chunked_backward', wrong)
    with pytest.raises(AssertionError):
        check('cpu', dict(lite=SIZES['lite']))


def test_small_takes_more_than_one_block_with_four_threads():
    H, W = (-(-side // 8) for side in agreement.SIZES['small'])  # stage 2: 2 heads, s = 4
    assert 2 * H * W * -(-H // 4) * -(-W // 4) > 4 * chunked.BLOCK


def test_nothing_is_measured_if_they_disagree(monkeypatch, capsys):
    def disagree(device):
        raise AssertionError('they differ')

    monkeypatch.setattr(agreement, 'check', disagree)
    monkeypatch.setattr(run, 'run', lambda *args: pytest.fail('measured'))
    monkeypatch.setattr(page, 'write', lambda: pytest.fail('written'))
    monkeypatch.setattr(sys, 'argv', ['run.py'])
    with pytest.raises(AssertionError, match='they differ'):
        run.main()
    assert not capsys.readouterr().out
