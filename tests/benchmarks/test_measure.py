"""Each kind of measurement, tiny; the tools' trainings are long: `make torture` runs them."""
import json
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from benchmarks import measure, run
from benchmarks.models import PEERS, REST, ROOT, backbone, detector
from tools.analysis_tools.count_flops import Counter

NAMES = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmrest')


def case(kind, model, **more):
    made = run.group(kind, (model, ), 2, 40, 56, limit=0.01, **more).case
    return dict(made, model=model)


@pytest.mark.parametrize('kind, model, more', [
    ('inference', 'ResT-Lite', {}),
    ('training', 'ResT-Small, published', {}),
    ('growth', 'ResT-Lite', dict(part='training')),
    ('operator', 'ResT-Small', dict(part='stage 3')),
    ('first_step', 'ResT-Lite', {}),
    ('detector', 'RetinaNet R-50', {}),
])
def test_a_process_of_its_own(kind, model, more):
    start = time.time()
    found, failure = run.measure_apart(case(kind, model, **more))
    assert failure is None
    assert all(0 < s < time.time() - start for s in found['seconds'])
    if kind == 'first_step':  # from before the process to its end
        assert len(found['seconds']) == 1 and found['seconds'][0] > 0.5
    else:
        size, = found['bytes']
        assert 0 < size < 4e9
    if kind in ('inference', 'training'):
        assert found['parameters'] == [sum(p.numel() for p in backbone(model).parameters())]


@pytest.mark.parametrize('kind, keys', [
    ('loading', {'data_share', 'seconds'}),
    ('digits', {'box_ap', 'mask_ap', 'top1', 'classifier_seconds', 'detector_seconds',
                'seconds', 'process_bytes'}),
])
def test_trainings_of_the_tools(kind, keys, pytestconfig):
    if not pytestconfig.getoption('--torture'):
        pytest.skip('minutes: make torture')
    model = 'Mask R-CNN R-18' if kind == 'digits' else 'Mask R-CNN ResT-Lite'
    found, failure = run.measure_apart(dict(case(kind, model), iterations=20))
    assert failure is None and set(found) - {'top1'} == keys - {'top1'}
    assert all(0 <= value < 1 for value in found.get('data_share', []))


def test_the_demo_trains_both_parts_of_a_model_and_tests_the_last(monkeypatch, tmp_path):
    calls = []

    def tool(script, *args, cwd):
        calls.append((script, Path(args[0]).stem, args))
        if script == 'train.py':
            folder = cwd / 'work_dirs' / Path(args[0]).stem / 'now/vis_data'
            metrics = [dict(time=t, data_time=0.1) for t in (9., 2., 3.)]
            metrics.append({'accuracy/top1': 87.5})
        else:
            folder = cwd / 'test/now'
            metrics = [{'coco/bbox_mAP': 0.5, 'coco/segm_mAP': 0.25}]
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, metrics)))
        return 60. * len(calls), 1000 * len(calls)

    monkeypatch.setattr(measure, 'run_tool', tool)
    monkeypatch.setattr(measure, 'link_digits', lambda folder: None)
    found = measure.digits(dict(model='Mask R-CNN R-18', seed=3))
    assert [call[:2] for call in calls] == [
        ('train.py', 'resnet18_digits'), ('train.py', 'resnet18_fpn_digits'),
        ('test.py', 'resnet18_fpn_digits')]
    assert all('randomness.seed=3' in call[2] for call in calls[:2])
    assert 'model.backbone.init_cfg.checkpoint=work_dirs/resnet18_digits/iter_1100.pth' in (
        calls[1][2])
    assert calls[2][2][1] == 'work_dirs/resnet18_fpn_digits/iter_1100.pth'
    assert found == dict(box_ap=[0.5], mask_ap=[0.25], top1=[87.5], classifier_seconds=[60.],
                         detector_seconds=[120.], seconds=[3.], process_bytes=[2000])


def test_both_backbones_of_the_demo_have_one_budget():
    for rest, other in zip(*measure.DIGITS.values()):
        folder = 'mask_rcnn' if 'fpn' in rest else 'classification'
        ours, theirs = (Config.fromfile(ROOT / f'configs/{folder}/{name}.py')
                        for name in (rest, other))
        assert theirs.model.backbone.type == 'ResNet' and theirs.model.backbone.depth == 18
        ours.model.pop('backbone')
        theirs.model.pop('backbone')
        assert ours.to_dict() == theirs.to_dict()
    detector_cfg = Config.fromfile(ROOT / 'configs/mask_rcnn/resnet18_fpn_digits.py')
    assert detector_cfg.model.backbone.frozen_stages == -1
    assert detector_cfg.model.backbone.init_cfg.checkpoint == (
        f'work_dirs/resnet18_digits/iter_{detector_cfg.max_iters}.pth')


def test_a_failure_is_said_and_not_tried_again(monkeypatch, tmp_path, capsys):
    failure = 'ValueError: no such model'
    tried = []

    def apart(task):
        tried.append(task['model'])
        return ({}, failure) if task['model'] == 'R-1000' else (dict(seconds=[1.]), None)

    monkeypatch.setattr(run, 'measure_apart', apart)
    groups = [run.group('growth', ('A', 'R-1000', 'B'), 1, 8, 8)]
    where = dict.fromkeys(run.rows.WHERE, '')
    run.run('cpu', groups, tmp_path / 'cpu.csv', where)
    assert tried == ['A', 'R-1000', 'B', 'A', 'B', 'A', 'B']  # by turns
    written = run.rows.read(tmp_path / 'cpu.csv')
    assert [(row['model'], row['status'][:10], row['runs'], row['processes'])
            for row in written] == [('A', 'ok', 3, 3), ('R-1000', 'ValueError', 0, 1),
                                    ('B', 'ok', 3, 3)]
    assert 'R-1000: ValueError' in capsys.readouterr().out


def test_too_little_memory_is_an_error_of_one_process():
    task = dict(case('inference', 'ResT-Lite'), height=200_000, width=200_000)
    found, failure = run.measure_apart(task)
    assert found == {} and 'memory' in failure


def test_no_time_left_is_no_further_round(monkeypatch, tmp_path):
    clock = [0.]
    order = []

    def apart(task):
        clock[0] += 60.
        order.append(task['model'])
        return dict(seconds=[1.]), None

    monkeypatch.setattr(run, 'measure_apart', apart)
    monkeypatch.setattr(run.time, 'monotonic', lambda: clock[0])
    groups = [run.group('growth', models, 1, 8, 8) for models in (('A', 'B'), ('C', ))]
    where = dict.fromkeys(run.rows.WHERE, '')
    run.run('cpu', groups, tmp_path / 'cpu.csv', where, minutes=6)
    assert order == ['A', 'B', 'C', 'A', 'B', 'C']
    order.clear()
    clock[0] = 0.
    run.run('cpu', groups, tmp_path / 'cpu.csv', where, minutes=1)
    assert order == ['A', 'B']


def test_rows_of_a_run_that_is_interrupted_stay(monkeypatch, tmp_path):
    def apart(task):
        if task['model'] == 'C':
            raise KeyboardInterrupt
        return dict(seconds=[1.]), None

    monkeypatch.setattr(run, 'measure_apart', apart)
    groups = [run.group('growth', models, 1, 8, 8) for models in (('A', 'B'), ('C', ))]
    with pytest.raises(KeyboardInterrupt):
        run.run('cpu', groups, tmp_path / 'cpu.csv', dict.fromkeys(run.rows.WHERE, ''))
    assert [row['model'] for row in run.rows.read(tmp_path / 'cpu.csv')] == ['A', 'B']


def test_multiply_adds_are_those_of_the_projects_own_counter():
    model = backbone('ResT-Lite').eval()
    counter = Counter(model)
    with torch.no_grad():
        model(torch.zeros(1, 3, 72, 104))
    found = measure.count(dict(case('inference', 'ResT-Lite'), height=72, width=104))
    # Which leaves out the 1x1 convolutions over heads: h^2 N M, two blocks in each stage.
    mix = 2 * (2**2 * 9 * 13 * 3 * 4 + 4**2 * 5 * 7 * 3 * 4 + 8**2 * 3 * 4 * 3 * 4)
    assert found['multiply_adds'] == [counter.layers + counter.attention + mix]
    published = measure.count(
        dict(case('inference', 'ResT-Lite, published'), height=72, width=104))
    assert published == found


@pytest.mark.parametrize('name', ['PVT-T', 'PVTv2-B1', 'Swin-T', 'R-18'])
def test_peers_train_everything_and_take_the_next_step(name):
    torch.manual_seed(0)
    model = backbone(name)
    assert all(p.requires_grad for p in model.parameters())
    assert not [m for m in model.modules() if getattr(m, 'drop_prob', 0.) > 0]
    if name in ('Swin-T', 'R-18'):
        step = measure.training_step(case('training', name))
        step()
        step()


def test_models_are_what_their_papers_say():
    """Millions of parameters without the head: tables of PVT, PVT v2, Swin and ResNet."""
    want = {'PVT-T': 12.7, 'PVTv2-B1': 13.5, 'Swin-T': 27.5, 'R-18': 11.2, 'R-50': 23.5}
    for name, millions in want.items():
        got = sum(p.numel() for p in backbone(name).parameters()) / 1e6
        assert abs(got - millions) < 0.06, name


def test_unknown_models():
    for build in (backbone, detector):
        with pytest.raises(ValueError, match="model='R-1000' must be one of"):
            build('R-1000')


def test_the_plan_names_what_there_is():
    from benchmarks.models import COMPILED, DETECTORS, PUBLISHED
    backbones = {*REST, *PUBLISHED, *COMPILED, *PEERS}
    known = dict(detector=DETECTORS, loading=measure.DIGITS, digits=measure.DIGITS,
                 first_step={*backbones, *DETECTORS})
    for groups in run.PLAN.values():
        for group in groups:
            assert set(group.models) <= set(known.get(group.case['kind'], backbones))
            assert len(set(group.models)) == len(group.models)


def test_where_it_was_measured():
    where = run.whereabouts('cpu')
    assert set(where) == set(run.rows.WHERE) and all(where.values())
    assert {name: where[name] for name in NAMES} == {
        name: sys.modules[name].__version__ for name in NAMES}
    assert where['machine'].endswith(f'{torch.get_num_threads()} threads')
