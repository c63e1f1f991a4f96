from benchmarks import rows

WHERE = dict(date='2020-01-02', commit='abc', machine='m', python='3', torch='2', mmengine='0',
             mmcv='2', mmdet='3', mmrest='0')
CASE = dict(kind='training', part='', model='ResT-Small', device='cpu', batch=1, height=800,
            width=1344, precision='float32', seed=0, limit=1.)


def test_a_row_has_median_spread_and_origin(tmp_path):
    path = tmp_path / 'new/cpu.csv'
    found = dict(seconds=[3., 1., 8.], bytes=[10, 20])
    rows.write(path, rows.make('cpu', CASE, WHERE, found, processes=2))
    seconds, size = rows.read(path)
    case = {key: CASE[key] for key in rows.CASE}
    assert seconds == dict(
        WHERE, **case, selection='cpu', metric='seconds', unit='s', median=3., min=1., max=8.,
        runs=3, processes=2, status='ok')
    assert size == dict(seconds, metric='bytes', unit='B', median=15., min=10., max=20., runs=2)


def test_a_failure_is_a_row_beside_what_was_measured(tmp_path):
    made = rows.make('cpu', CASE, WHERE, dict(seconds=[2.]), 2, 'RuntimeError: no\nmemory, "x"')
    rows.write(tmp_path / 'a.csv', made)
    good, bad = rows.read(tmp_path / 'a.csv')
    assert (good['median'], good['status']) == (2., 'ok')
    assert (bad['metric'], bad['median'], bad['runs']) == ('', '', 0)
    assert bad['status'] == 'RuntimeError: no memory, "x"'
