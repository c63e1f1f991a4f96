import csv

import pytest

from benchmarks import rows

WHERE = dict(date='2020-01-02', commit='abc', machine='m', python='3', torch='2', mmengine='0',
             mmcv='2', mmdet='3', mmrest='0')
CASE = dict(kind='training', model='ResT-Small', device='cpu', batch=1, height=800, width=1344,
            precision='float32', seed=0, limit=1.)


def test_a_row_has_median_spread_and_origin(tmp_path):
    found = dict(seconds=[3., 1., 8.], bytes=[10, 20])
    made = rows.make('cpu', CASE, WHERE, found, processes=2)
    path = tmp_path / 'new/cpu.csv'
    rows.write(path, made)
    seconds, size = rows.read(path)
    want = dict(WHERE, selection='cpu', kind='training', part='', model='ResT-Small',
                device='cpu', batch=1, height=800, width=1344, precision='float32', seed=0,
                metric='seconds', unit='s', median=3., min=1., max=8., runs=3, processes=2,
                status='ok')
    assert seconds == want
    assert tuple(seconds) == rows.FIELDS
    assert size == dict(want, metric='bytes', unit='B', median=15., min=10., max=20., runs=2)
    assert [file.name for file in path.parent.iterdir()] == ['cpu.csv']


def test_a_failure_is_a_row_beside_what_was_measured(tmp_path):
    made = rows.make('cpu', CASE, WHERE, dict(seconds=[2.]), 2, 'RuntimeError: no\nmemory, "x"')
    rows.write(tmp_path / 'a.csv', made)
    good, bad = rows.read(tmp_path / 'a.csv')
    assert (good['median'], good['status']) == (2., 'ok')
    assert (bad['metric'], bad['median'], bad['runs']) == ('', '', 0)
    assert bad['status'] == 'RuntimeError: no memory, "x"'


def test_every_metric_needs_a_unit():
    with pytest.raises(KeyError, match='fortnights'):
        rows.make('cpu', CASE, WHERE, dict(fortnights=[1.]), 1)


def test_other_columns_are_refused(tmp_path):
    path = tmp_path / 'a.csv'
    with path.open('w', newline='') as file:
        csv.writer(file).writerow(('selection', 'seconds'))
    with pytest.raises(ValueError, match='columns'):
        rows.read(path)


def test_exponent_is_the_slope_of_logarithms():
    assert abs(rows.exponent([1, 10, 100], [3, 30, 300]) - 1) < 1e-12
    assert abs(rows.exponent([1, 2, 4], [1, 4, 16]) - 2) < 1e-12
    # least squares: the middle point of three evenly spaced ones does not turn the line
    assert abs(rows.exponent([1, 2, 4], [1, 17, 8]) - 1.5) < 1e-12


@pytest.mark.parametrize('xs, ys', [([1], [1]), ([2, 2], [1, 2]), ([1, 2], [0, 1]), ([], [])])
def test_exponent_of_no_line(xs, ys):
    with pytest.raises(ValueError, match='no line'):
        rows.exponent(xs, ys)
