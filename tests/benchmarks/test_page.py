import json

import pytest

from benchmarks import page, plan

LARGE = plan.PLAN['cpu']['backbone'].columns
WHERE = dict(machine='slow box', commit='abc', date='2020-01-02', torch='2')


def result(column, model, *seconds, size=342e6):
    case = dict(zip(('mode', 'batch', 'height', 'width'), column[:4]))
    return dict(case, precision=column.precision, model=model, seconds=list(seconds),
                bytes=size, parameters=12_300_000, multiply_adds=4_560_000_000)


def found(*results):
    return page.by_column(results)


def test_the_pages_are_those_of_the_results():
    files = {name: json.loads((page.RESULTS / f'{name}.json').read_text())
             for name in plan.PLAN}
    for path, text in page.fill(files).items():
        assert path.read_text() == text
    small = next(r for r in files['cpu']['results'] if (r['mode'], r['model'], r['height']) == (
        'inference', 'ResT-Small', 800))
    for path in (page.PAGE, page.README):
        assert f' {page.cost(small)} |' in path.read_text()


def test_a_table_has_medians_paired_ratios_and_bold_for_what_is_faster():
    lines = page.table('backbone', plan.PLAN['cpu']['backbone'], found(
        result(LARGE[0], 'ResT-Small', 1., 2., 4.), result(LARGE[0], 'PVT-T', 2., 2., 2.),
        result(LARGE[0], 'Swin-T', 1., 2., 3.9), result(LARGE[0], 'R-50', 0.96, 1.92, 3.8),
        result(LARGE[0], 'R-18', 0.05, 0.04, 0.2, size=41e6)))
    assert lines[2:] == [
        '| ResT-Small | 12.3 | 4.56 | 2 s, 342 MB | 1.00 |',
        '| PVT-T | 12.3 | 4.56 | 2 s, 342 MB | 1.00 (0.50–2.00) |',
        '| Swin-T | 12.3 | 4.56 | 2 s, 342 MB | 1.00 (0.97–1.00) |',
        '| R-18 | 12.3 | 4.56 | **50 ms, 41 MB** | 0.05 (0.02–0.05) |',
        '| R-50 | 12.3 | 4.56 | **1.92 s, 342 MB** | 0.96 (0.95–0.96) |']


def test_growth_is_the_time_per_pixel():
    table = plan.PLAN['cpu']['growth']
    lines = page.table('growth', table, found(*(
        result(column, 'ResT-Small', seconds)
        for column, seconds in zip(table.columns, (0.25, 1.5, 16.)))))
    assert lines[2] == ('| ResT-Small | 0.25 s, 342 MB | 1.00 | 1.5 s, 342 MB | 1.50 | '
                        '16 s, 342 MB | 4.00 |')


def test_what_was_not_measured_is_in_no_table_but_in_one_sentence():
    results = found(*(result(LARGE[0], model, 1.) for model in LARGE[0].models[:-1]))
    assert page.table('growth', plan.PLAN['cpu']['growth'], results) == []
    text = page.missing(dict(cpu=results))
    assert f'1 x 800 x 1344: `{LARGE[0].models[-1]}`; `make bench`, float32, training' in text
    assert 'make bench-gpu' in text and 'PVT-T' not in text.split(';')[0]


def test_a_page_without_its_markers_is_not_written(tmp_path, monkeypatch):
    for name in ('PAGE', 'README'):
        path = tmp_path / f'{name}.md'
        path.write_text('<!-- table: backbone -->\n<!-- end -->')
        monkeypatch.setattr(page, name, path)
    monkeypatch.setattr(page, 'RESULTS', tmp_path)
    (tmp_path / 'cpu.json').write_bytes(page.dump(WHERE, [result(LARGE[0], 'ResT-Small', 1.)]))
    with pytest.raises(ValueError, match='<!-- table: export -->'):
        page.write()
    assert len([*tmp_path.iterdir()]) == 3 and '|' not in page.PAGE.read_text()


def test_the_chart_shows_the_results():
    column = plan.PLAN['cpu']['growth'].columns[0]
    results = found(*(result(c, 'ResT-Small', 1., 3.) for c in (*LARGE, column)))
    assert page.draw(results).startswith(b'\x89PNG')
    assert page.curves(results, lambda r: r['bytes']) == {'ResT-Small': [(512, 342e6)]}
