"""Small measurements of each kind."""
import json
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from benchmarks import measure, run
from benchmarks.models import DETECTORS, PEERS, PUBLISHED, REST, RESTV2, ROOT, backbone
from benchmarks.runtimes import RUNTIMES


def case(kind, model, **more):
    made = run.group(kind, (model, ), 2, 40, 56, limit=0.01, **more).case
    return dict(made, model=model)


def test_a_process_of_its_own():
    start = time.time()
    found, failure = run.measure_apart(case('training', 'ResT-Lite'))
    assert failure is None
    assert all(0 < s < time.time() - start for s in found['seconds'])
    size, = found['bytes']
    assert 0 < size < 4e9
    assert found['parameters'] == [sum(p.numel() for p in backbone('ResT-Lite').parameters())]


@pytest.mark.parametrize('kind, model, more', [
    ('inference', 'ResT-Small, published', {}),
    ('growth', 'ResT-Lite', dict(part='training')),
    ('operator', 'ResT-Small', dict(part='stage 3')),
    ('operator', 'ResT-Small, published', dict(part='stage 4')),
    ('detector', 'RetinaNet R-50', {}),
    ('runtime', 'ResT-Lite', {}),
])
def test_steps_are_timed(kind, model, more):
    start = time.perf_counter()
    found = measure.steps(case(kind, model, **more))
    assert 0 < sum(found['seconds']) < time.perf_counter() - start
    assert ('multiply_adds' in found) == (kind == 'inference')


@pytest.mark.parametrize('runtime', ['onnxruntime', 'OpenVINO'])
def test_runtimes_are_timed(runtime, tmp_path, monkeypatch):
    pytest.importorskip(runtime.lower())
    from onnx import TensorProto, helper, save
    image = helper.make_tensor_value_info('image', TensorProto.FLOAT, [None, 3, None, None])
    out = helper.make_tensor_value_info('out', TensorProto.FLOAT, [None, 3, None, None])
    relu = helper.make_node('Relu', ['image'], ['out'])
    graph = helper.make_graph([relu], 'g', [image], [out])
    save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid('', 18)]),
         str(tmp_path / 'x.onnx'))
    monkeypatch.setattr(measure, 'export', lambda name: str(tmp_path / 'x.onnx'))
    found = measure.steps(case('runtime', f'ResT-Lite, {runtime}'))
    assert found['seconds'] and 'multiply_adds' not in found


def test_the_first_step_is_timed_from_the_start_of_the_process():
    found = measure.first_step(dict(case('first_step', 'ResT-Lite'), started=time.time() - 100))
    assert 100 < found['seconds'][0] < 200


@pytest.mark.slow
@pytest.mark.parametrize('kind, keys', [
    ('loading', {'data_share', 'seconds'}),
    ('digits', {'box_ap', 'mask_ap', 'top1', 'classifier_seconds', 'detector_seconds',
                'seconds', 'process_bytes'}),
])
def test_trainings_with_the_tools(kind, keys):
    model = 'Mask R-CNN R-18' if kind == 'digits' else 'Mask R-CNN ResT-Lite'
    found, failure = run.measure_apart(dict(case(kind, model), iterations=20))
    assert failure is None and set(found) == keys
    assert all(0 <= value < 1 for value in found.get('data_share', []))
    assert found.get('process_bytes', [1e9])[0] > 5e8


def test_the_demo_trains_a_classifier_then_a_detector_from_it(monkeypatch, tmp_path):
    calls = []

    def tool(script, *args, cwd):
        calls.append((script, Path(args[0]).stem, args))
        folder = cwd / 'out/now/vis_data'
        folder.mkdir(parents=True)
        records = [dict(time=t, data_time=0.1, loss=1.) for t in (9., 2., 3.)]
        records += [{'accuracy/top1': 12.5, 'time': 1.}, {'accuracy/top1': 87.5, 'time': 1.}]
        records += [{'coco/bbox_mAP': 0.5, 'coco/segm_mAP': 0.25, 'time': 1.}]
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))
        (cwd / 'out/last_checkpoint').write_text('/runs/iter_700.pth')
        return 60. * len(calls), 1000 * len(calls)

    monkeypatch.setattr(measure, 'run_tool', tool)
    monkeypatch.setattr(measure, 'ROOT', tmp_path)
    (tmp_path / 'data/digits').mkdir(parents=True)  # drawn already
    found = measure.digits(dict(model='Mask R-CNN R-18', seed=3))
    assert [call[:2] for call in calls] == [
        ('train.py', 'resnet18_digits'), ('train.py', 'resnet18_fpn_digits')]
    assert all('randomness.seed=3' in args for *_, args in calls)
    assert 'model.backbone.init_cfg.checkpoint=/runs/iter_700.pth' in calls[1][2]
    assert found == dict(box_ap=[0.5], mask_ap=[0.25], top1=[87.5], classifier_seconds=[60.],
                         detector_seconds=[120.], seconds=[3.], process_bytes=[2000])


def test_both_backbones_of_the_demo_have_the_same_recipe():
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
    iterations = Config.fromfile(ROOT / 'configs/classification/resnet18_digits.py').max_iters
    assert detector_cfg.model.backbone.init_cfg.checkpoint == (
        f'work_dirs/resnet18_digits/iter_{iterations}.pth')


def test_models_take_turns_and_a_failure_is_not_tried_again(monkeypatch, tmp_path, capsys):
    tried = []

    def apart(task):
        tried.append(task['model'])
        if task['model'] == 'R-1000':
            return {}, "KeyError: 'R-1000'"
        return dict(seconds=[1.]), None

    monkeypatch.setattr(run, 'measure_apart', apart)
    groups = [run.group('growth', ('A', 'R-1000', 'B'), 1, 8, 8)]
    run.run('cpu', groups, tmp_path / 'cpu.csv', dict.fromkeys(run.rows.WHERE, ''))
    assert tried == ['A', 'R-1000', 'B', 'A', 'B', 'A', 'B']
    written = run.rows.read(tmp_path / 'cpu.csv')
    assert [(row['model'], row['status'][:8], row['runs'], row['processes'])
            for row in written] == [('A', 'ok', 3, 3), ('R-1000', 'KeyError', 0, 1),
                                    ('B', 'ok', 3, 3)]
    assert 'R-1000: KeyError' in capsys.readouterr().out


def test_too_little_memory_is_an_error_of_one_process():
    task = dict(case('inference', 'ResT-Lite'), height=200_000, width=200_000)
    found, failure = run.measure_apart(task)
    assert found == {} and 'memory' in failure


def test_the_time_limit_ends_the_rounds(monkeypatch, tmp_path):
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


def test_rows_stay_when_a_run_is_interrupted(monkeypatch, tmp_path):
    def apart(task):
        if task['model'] == 'C':
            raise KeyboardInterrupt
        return dict(seconds=[1.]), None

    monkeypatch.setattr(run, 'measure_apart', apart)
    groups = [run.group('growth', models, 1, 8, 8) for models in (('A', 'B'), ('C', ))]
    with pytest.raises(KeyboardInterrupt):
        run.run('cpu', groups, tmp_path / 'cpu.csv', dict.fromkeys(run.rows.WHERE, ''))
    assert [row['model'] for row in run.rows.read(tmp_path / 'cpu.csv')] == ['A', 'B']


def test_parameters_of_the_peers_are_those_of_their_papers():
    """In millions, without the head."""
    for name, millions in {'PVT-T': 12.7, 'PVTv2-B1': 13.5, 'Swin-T': 27.5, 'R-18': 11.2,
                           'R-50': 23.5}.items():
        found = measure.count(dict(case('inference', name), height=224, width=224))
        assert abs(found['parameters'][0] / 1e6 - millions) < 0.06, name
    assert abs(found['multiply_adds'][0] / 1e9 - 4.09) < 0.01  # of ResNet-50


def test_multiply_adds_are_those_counted_by_hand():
    want = 32 * 32 * 9 * (3 * 32 + 32 * 32) + 16 * 16 * 9 * (32 * 64 + 64)  # stem
    mixing = 0  # ResT calls the convolution over heads on h + 1 more columns to read it
    for i, (C, h, s) in enumerate(zip((64, 128, 256, 512), (1, 2, 4, 8), (8, 4, 2, 1))):
        N, M = (16 >> i)**2, 4
        if i > 0:
            want += 9 * N * (C // 2 * C + C)  # patch embedding
        block = 2 * N * C * C + 2 * M * C * C + 2 * N * M * C + 8 * N * C * C
        block += M * C * (s + 1)**2 * (s > 1) + h * h * N * M * (h > 1)
        want += 2 * block
        mixing += 2 * h * h * (h + 1) * (h > 1)
    ours, port = (measure.count(dict(case('inference', name), height=64, width=64))
                  for name in ('ResT-Lite', 'ResT-Lite, published'))
    assert port['multiply_adds'] == [want] and ours['multiply_adds'] == [want + mixing]
    assert ours['parameters'] == port['parameters']


@pytest.mark.parametrize('name', ['PVT-T', 'PVTv2-B1', 'Swin-T', 'R-18'])
def test_peers_train_all_their_parameters(name):
    torch.manual_seed(0)
    model = backbone(name)
    assert all(p.requires_grad for p in model.parameters())
    assert not [m for m in model.modules() if getattr(m, 'drop_prob', 0.) > 0]
    if name in ('Swin-T', 'R-18'):
        step = measure.training_step(case('training', name))
        step()
        step()


def test_the_compiled_backbone_is_the_backbone(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, 'compile', lambda model: compiled.append(model) or model)
    for name in ('ResT-Small', 'ResT-Small, published'):
        assert type(backbone(f'{name}, compiled')) is type(backbone(name))
    found = measure.steps(case('inference', 'ResT-Lite, compiled'))
    assert len(compiled) == 3 and 'bytes' not in found
    assert found['parameters'] == measure.count(case('inference', 'ResT-Lite'))['parameters']


def test_the_plan_names_known_models():
    backbones = {*REST, *RESTV2, *PUBLISHED, *PEERS}
    known = dict(detector=DETECTORS, loading=measure.DIGITS, digits=measure.DIGITS,
                 first_step={*backbones, *DETECTORS},
                 runtime={name + runtime for name in REST for runtime in ('', *RUNTIMES)})
    for groups in run.PLAN.values():
        for group in groups:
            names = [model.replace(', compiled', '') for model in group.models]
            assert set(names) <= set(known.get(group.case['kind'], backbones))
            assert len(set(group.models)) == len(group.models)


def test_where_it_was_measured():
    where = run.whereabouts('cpu')
    assert set(where) == set(run.rows.WHERE) and all(where.values())
    assert where['torch'] == torch.__version__
    assert where['machine'].endswith(f'{torch.get_num_threads()} threads')
