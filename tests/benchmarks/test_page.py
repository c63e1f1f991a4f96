import re

import pytest

from benchmarks import measure, page, rows, run

WHERE = dict(date='2020-01-02', commit='abc', machine='slow box', python='3', torch='2',
             mmengine='0', mmcv='2', mmdet='3', mmrest='0')
PLAN = dict(cpu=run.CPU[:3] + run.growth(('ResT-Small', ), 'inference'), gpu=run.GPU)
EMPTY = '\n'.join(f'<!-- table: {name} -->\n<!-- end -->'
                  for name in ('machines', 'goals', *page.COLUMNS))


def measured(slow=(), fail=()):
    """Rows of the CPU groups as a file gives them; ``slow`` models take three times as much."""
    made = []
    for group in PLAN['cpu']:
        pixels = group.case['height'] * group.case['width'] / 1e6
        for model in group.models:
            factor = 3. if model in slow else 1.
            if model.startswith(('ResT-Small', 'Mask R-CNN ResT')):
                factor /= 2
            if model.endswith('compiled'):
                factor /= 2
            found = dict(seconds=[factor * pixels, 1.1 * factor * pixels],
                         bytes=[1e9 * factor * pixels**2])
            if group.case['kind'] in ('training', 'inference'):
                found.update(parameters=[12_300_000], multiply_adds=[4_560_000_000])
            failure = 'RuntimeError: out of memory' if model in fail else None
            case = dict(group.case, model=model)
            made += rows.make('cpu', case, WHERE, {} if failure else found, 1, failure)
    return made


def goals(text):
    return re.findall(r'^\| (.+?) \| CPU \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$', text, re.M)


def test_the_tables_of_the_page_are_those_of_the_rows():
    text = (run.ROOT / 'docs/benchmarks.md').read_text()
    found = [row for name in run.PLAN for path in [run.RESULTS / f'{name}.csv']
             if path.exists() for row in rows.read(path)]
    assert page.fill(text, run.PLAN, found) == text
    small = next(row for row in found if (row['kind'], row['model'], row['metric']) == (
        'training', 'ResT-Small', 'seconds'))
    assert f"| ResT-Small | 13.2 | 86.4 | {1 / small['median']:.3g} (" in text


def test_goals():
    found = goals(page.fill(EMPTY, PLAN, measured(slow=['Mask R-CNN ResT-Small'])))
    assert len(found) == len(page.GOALS) == 12
    assert [row[1:3] for row in found if 'step than PVT-T' in row[0]] == [('0.564 s', '1.13 s')]
    *backbones, detector = found
    assert {row[3:] for row in backbones} == {('0.50', 'met, by 50%')}
    assert detector[1:] == ('1734 MB', '1156 MB', '1.50', 'missed, by 50%')


def test_overlapping_spreads_and_missing_models():
    made = [row for row in measured() if row['model'] != 'PVT-T']
    for row in made:
        if row['model'] == 'Swin-T' and row['metric'] == 'seconds':
            row['min'] = 0.1
    found = goals(page.fill(EMPTY, PLAN, made))
    assert not any('PVT-T' in row[0] for row in found)
    met, overlap = 'met, by 50%', 'met, by 50%; the spreads overlap'
    assert [row[-1] for row in found] == [met, overlap, met, met, met, overlap, met, met, met]


def test_tables_have_medians_spreads_ratios_and_origin():
    text = page.fill(EMPTY, PLAN, measured(slow=['PVT-T']))
    training = text.split('<!-- table: training -->')[1].split('<!-- end -->')[0]
    assert '| ResT-Small | 12.3 | 4.56 | 1.77 (1.69 to 1.86) | 1.00 | 578 | 1.00 | 2 (1) |' in (
        training)
    assert '| PVT-T | 12.3 | 4.56 | 0.295 (0.282 to 0.31) | 6.00 | 3468 | 6.00 | 2 (1) |' in (
        training)
    assert '| `make bench` | slow box | python 3, torch 2, ' in text
    assert '| ResT-Small | 1.00 | 2.00 | 34.4 ms, 2.15 MB |' in text  # growth


def test_failed_and_missing_measurements_are_named():
    made = [row for row in measured(fail=['Swin-T']) if row['model'] != 'PVTv2-B1' and not (
        row['kind'] == 'growth' and row['height'] == 2048)]
    text = page.fill(EMPTY, PLAN, made)
    training = text.split('<!-- table: training -->')[1].split('<!-- end -->')[0]
    assert '| Swin-T | failed at 800x1344: RuntimeError: out of memory |  |' in training
    assert '\nNot measured: PVTv2-B1.\n' in training
    assert ('Not measured (`make bench-gpu`): 8 x 800x1344, bfloat16, NVIDIA GPU, ResT-Small '
            'and others; 256 x 224x224') in training
    assert '| ResT-Small | 1.00 (to 1024) | 2.00 (to 1024) |' in text
    assert 'Not measured yet: `make bench-all`, `make bench-gpu`.' in text


def test_without_rows_no_figure_is_written():
    assert not re.search(r'\| [\d.]', page.fill(EMPTY, run.PLAN, []))


def test_a_page_without_a_marker_stays_as_it_is(tmp_path):
    path = tmp_path / 'page.md'
    path.write_text(EMPTY.replace('growth', 'grwth'))
    with pytest.raises(ValueError, match='<!-- table: growth -->'):
        page.write(PLAN, tmp_path, path)
    assert [*tmp_path.iterdir()] == [path] and '|' not in path.read_text()


def test_the_chart_shows_the_rows(tmp_path):
    (tmp_path / 'page.md').write_text(EMPTY)
    rows.write(tmp_path / 'cpu.csv', measured())
    page.write(PLAN, tmp_path, tmp_path / 'page.md')
    assert (tmp_path / 'page.png').read_bytes().startswith(b'\x89PNG')
    found = page.by_case(rows.read(tmp_path / 'cpu.csv'))
    assert page.curves(found, 'cpu', 'bytes', 'training')['PVT-T'] == [
        (12.3, pytest.approx(1.0752**2))]
    growth = page.curves(found, 'cpu', 'seconds', 'growth')['ResT-Small']
    assert growth == [(side, pytest.approx(1.05 * side**2 / 2e6)) for side in page.SIDES]


def test_every_kind_has_columns_and_a_measurement():
    kinds = {group.case['kind'] for groups in run.PLAN.values() for group in groups}
    assert kinds == set(page.COLUMNS) == set(measure.KINDS)


def test_captions_tell_tables_apart():
    for groups in run.PLAN.values():
        tasks = [(page.caption(group), group.case['kind'], group.case['height'])
                 for group in groups]
        assert len(set(tasks)) == len(tasks)
