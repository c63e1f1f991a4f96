import re

import pytest

from benchmarks import measure, page, rows, run

WHERE = dict(date='2020-01-02', commit='abc', machine='slow box', python='3', torch='2',
             mmengine='0', mmcv='2', mmdet='3', mmrest='0')


def measured(groups, slow=(), fail=(), selection='cpu'):
    """Rows of groups as a file would give them; ``slow`` models take thrice as much."""
    made = []
    for group in groups:
        pixels = group.case['height'] * group.case['width'] / 1e6
        for model in group.models:
            factor = 3. if model in slow else 1.
            if model.startswith(('ResT-Small', 'Mask R-CNN ResT')):
                factor /= 2
            found = dict(seconds=[factor * pixels, 1.1 * factor * pixels],
                         bytes=[1e9 * factor * pixels**2])
            if group.case['kind'] in ('training', 'inference'):
                found.update(parameters=[12_300_000], multiply_adds=[4_560_000_000])
            failure = 'RuntimeError: out of memory' if model in fail else None
            case = dict(group.case, model=model)
            made += rows.make(selection, case, WHERE, {} if failure else found, 1, failure)
    return made


PLAN = dict(cpu=run.CPU[:3] + run.growth(('ResT-Small', ), 'inference'), gpu=run.GPU)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    def write(made):
        folder = tmp_path_factory.mktemp('page')
        rows.write(folder / 'rows/cpu.csv', made)
        page.write(PLAN, folder / 'rows', folder / 'docs/benchmarks.md')
        return folder / 'docs'

    return write


def goals(text):
    return re.findall(r'^\| (.+?) \| CPU \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$', text, re.M)


def test_goals_met(written):
    text = (written(measured(PLAN['cpu'])) / 'benchmarks.md').read_text()
    found = goals(text)
    assert len(found) == 10 and all(row[3:] == ('0.50', 'met, by 50%') for row in found)
    assert '10 of 10 are met on the CPU; on the NVIDIA GPU nothing has been measured' in text
    assert '| all of these | NVIDIA GPU | | | | not measured |' in text
    training = [row for row in found if row[0].endswith('a faster training step than PVT-T')]
    assert [row[1:3] for row in training] == [('0.564 s', '1.13 s')]


def test_goals_missed(written):
    slow = 'ResT-Small', 'Mask R-CNN ResT-Small'
    text = (written(measured(PLAN['cpu'], slow=slow)) / 'benchmarks.md').read_text()
    assert {row[3:] for row in goals(text)} == {('1.50', 'missed, by 50%')}
    assert '0 of 10 are met on the CPU' in text


def test_spreads_that_overlap_are_said():
    made = measured(PLAN['cpu'])
    for row in made:
        if row['model'] == 'Swin-T' and row['metric'] == 'seconds':
            row['min'] = 0.1
    verdicts = [row[-1] for row in goals(page.text(PLAN, made)) if 'Swin-T' in row[0]]
    assert verdicts == ['met, by 50%; the spreads overlap', 'met, by 50%',
                        'met, by 50%; the spreads overlap']


def test_a_goal_compares_within_one_run():
    made = measured(PLAN['cpu'])
    for row in made:
        if row['model'] == 'PVT-T':
            row['date'] = '2020-01-03'
    verdicts = {row[0]: row[-1] for row in goals(page.text(PLAN, made))}
    assert {name for name, verdict in verdicts.items() if verdict == 'not measured'} == {
        name for name in verdicts if 'PVT-T' in name}
    assert len(verdicts) == 10
    assert '7 of 10 are met on the CPU, 3 not measured' in page.text(PLAN, made)


def test_tables_have_medians_ratios_and_origin():
    text = page.text(PLAN, measured(PLAN['cpu'], slow=['PVT-T']))
    training = text.split('## Training step of the backbone')[1].split('##')[0]
    lines = {line.split(' | ')[0]: line for line in training.splitlines()}
    assert lines['| ResT-Small'] == (
        '| ResT-Small | 12.3 | 4.56 | 1.77 (1.69 to 1.86) | 1.00 | 578 | 1.00 | 2 (1) |')
    assert lines['| PVT-T'] == (
        '| PVT-T | 12.3 | 4.56 | 0.295 (0.282 to 0.31) | 6.00 | 3468 | 6.00 | 2 (1) |')
    assert '| `make bench` | slow box | python 3, torch 2, ' in text
    growth = text.split('## Growth with the image')[1]
    assert re.search(r'^\| ResT-Small \| 1.00 \| 2.00 \| 34.4 ms, 2.15 MB \|', growth, re.M)


def test_what_failed_or_is_missing_is_said():
    made = measured(PLAN['cpu'], fail=['Swin-T'])
    made = [row for row in made if row['model'] != 'PVTv2-B1' and not (
        row['kind'] == 'growth' and row['height'] == 2048)]
    text = page.text(PLAN, made)
    training = text.split('## Training step of the backbone')[1].split('##')[0]
    assert '| Swin-T | failed: RuntimeError: out of memory | | | | | | |' in training
    assert '| PVTv2-B1 | not measured | | | | | | |' in training
    assert ('Not measured (`make bench-gpu`): 8 x 800x1344, bfloat16, NVIDIA GPU, ResT-Small '
            'and others; 256 x 224x224') in training
    assert '| ResT-Small | 1.00 (to 1024) | 2.00 (to 1024) |' in text
    verdicts = {row[0]: row[-1] for row in goals(text)}
    assert {verdict for name, verdict in verdicts.items() if 'Swin-T' in name} == {
        'not measured'}


def test_without_rows_nothing_is_claimed(tmp_path):
    page.write(run.PLAN, tmp_path / 'none', tmp_path / 'benchmarks.md')
    text = (tmp_path / 'benchmarks.md').read_text()
    assert 'Not measured yet: `make bench`, `make bench-all`, `make bench-gpu`.' in text
    assert 'benchmarks.png' not in text and not (tmp_path / 'benchmarks.png').exists()
    assert not re.search(r'\| \d', text)
    for title, _ in page.SECTIONS.values():
        assert f'## {title}\n' in text


def test_a_chart_is_drawn_of_the_rows(written, monkeypatch):
    from matplotlib.axes import Axes
    drawn = []
    right = Axes.plot
    monkeypatch.setattr(Axes, 'plot', lambda self, *args, **kwargs: (
        drawn.append(args), right(self, *args, **kwargs))[1])
    folder = written(measured(PLAN['cpu']))
    assert (folder / 'benchmarks.png').read_bytes().startswith(b'\x89PNG')
    assert '](benchmarks.png)' in (folder / 'benchmarks.md').read_text()
    assert not [*folder.glob('*.partial')]
    backbones = len(PLAN['cpu'][0].models) + len(PLAN['cpu'][2].models)
    points = [args for args in drawn if not isinstance(args[0], list)]
    assert len(points) == 2 * backbones and all(x == 12.3 for x, _ in points)


def test_every_kind_has_a_section_columns_and_a_measurement():
    kinds = {group.case['kind'] for groups in run.PLAN.values() for group in groups}
    assert kinds == set(page.SECTIONS) == set(page.COLUMNS) == set(measure.KINDS)


def test_captions_tell_tables_apart():
    for groups in run.PLAN.values():
        tasks = [(page.caption(group), group.case['kind'], group.case['height'])
                 for group in groups]
        assert len(set(tasks)) == len(tasks)
