"""Small measurements of each mode."""
import json

import pytest
import torch

from benchmarks import measure, plan, run
from benchmarks.models import COMPILED, DETECTORS, PEERS, PUBLISHED, REST, backbone, detector


def case(mode, model, **more):
    return dict(dict(mode=mode, model=model, batch=2, height=40, width=56, device='cpu',
                     precision='float32'), **more)


def test_processes_of_their_own_take_turns_when_all_are_built(monkeypatch):
    answer, workers = run.Worker.answer, []

    def note(worker):
        workers.append(worker)
        return answer(worker)

    monkeypatch.setattr(run.Worker, 'answer', note)
    names = ('ResT-Lite', 'R-1000', 'ResT-Lite, published')
    found = run.take_turns([case('training', name) for name in names], 2)
    each = list(dict.fromkeys(workers))
    assert [each.index(one) for one in workers] == [0, 1, 2, *[0, 2] * 3]  # the last is the end
    assert all(one.process.returncode is not None for one in each)
    assert str(found.pop('R-1000')) == "KeyError: 'R-1000'"
    parameters = sum(p.numel() for p in backbone('ResT-Lite').parameters())
    for one in found.values():
        assert len(one['seconds']) == 2 and min(one['seconds']) > 0
        assert 0 < one['bytes'] < 4e9 and one['parameters'] == parameters


@pytest.mark.parametrize('mode, model, precision', [
    ('inference', 'ResT-Small, published', 'float32'),
    ('training', 'Swin-T', 'bfloat16'),
    ('training', 'RetinaNet R-18', 'float32'),
])
def test_every_mode(mode, model, precision):
    _, *seconds, found = measure.measure(case(mode, model, precision=precision), range(2))
    assert len(seconds) == 2 and min(seconds) > 0 and 'bytes' in found
    assert ('multiply_adds' in found) == (model not in DETECTORS)


def test_autocast_is_on_for_16_bits():
    for precision in ('bfloat16', 'float32'):
        step = measure.inference_step(case('inference', 'ResT-Lite', precision=precision))
        assert step()[0].dtype == getattr(torch, precision)


def test_detectors_find_a_hundred_boxes_and_their_masks():
    model = detector('Mask R-CNN R-18')
    assert model.backbone.depth == 18
    step = measure.inference_step(case('inference', 'Mask R-CNN R-18', height=128, width=160))
    found, _ = step()
    assert found.pred_instances.masks.shape == (100, 128, 160)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['ResT-Lite', 'R-18'])
def test_exported_backbones(name):
    step = measure.inference_step(case('inference', f'{name}, onnxruntime'))
    assert [x.shape for x in step()] == [
        (2, C, -(-40 // s), -(-56 // s)) for C, s in ((64, 4), (128, 8), (256, 16), (512, 32))]


def test_parameters_of_the_peers_are_those_of_their_papers():
    """In millions, without the head."""
    for name, millions in {'PVT-T': 12.7, 'PVTv2-B1': 13.5, 'Swin-T': 27.5, 'R-18': 11.2,
                           'R-50': 23.5}.items():
        found = measure.count(case('inference', name, height=224, width=224))
        assert abs(found['parameters'] / 1e6 - millions) < 0.06, name
    assert abs(found['multiply_adds'] / 1e9 - 4.09) < 0.01  # of ResNet-50


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
    ours, port = (measure.count(case('inference', name, height=64, width=64))
                  for name in ('ResT-Lite', 'ResT-Lite, published'))
    assert (port['multiply_adds'], ours['multiply_adds']) == (want, want + mixing)
    assert ours['parameters'] == port['parameters']


@pytest.mark.parametrize('name', ['PVT-T', 'PVTv2-B1', 'Swin-T', 'R-18'])
def test_peers_train_all_their_parameters(name):
    model = backbone(name)
    assert all(p.requires_grad for p in model.parameters())
    assert not [m for m in model.modules() if getattr(m, 'drop_prob', 0.) > 0]


def test_the_compiled_backbone_is_the_backbone(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, 'compile', lambda model: compiled.append(model) or model)
    for name in ('ResT-Lite', 'ResT-Lite, published'):
        assert type(backbone(name + COMPILED)) is type(backbone(name))
    *_, found = measure.measure(case('inference', 'ResT-Lite, compiled'), range(1))
    assert len(compiled) == 3 and 'bytes' not in found and found['parameters'] > 9e6


def test_the_plan_names_known_models():
    for name in plan.PLAN:
        for column in plan.columns(name):
            for model in column.models:
                kind = model.removesuffix(measure.ONNXRUNTIME).removesuffix(COMPILED)
                assert kind.removesuffix(PUBLISHED) in {*REST, *PEERS, *DETECTORS}


def test_where_it_was_measured():
    where = run.whereabouts('cpu')
    assert all(where.values()) and where['torch'] == torch.__version__
    assert where['machine'].endswith(f'{torch.get_num_threads()} threads')


def test_results_are_written_without_the_models_that_failed(monkeypatch, tmp_path, capsys):
    def take_turns(cases, turns):
        assert turns == 3 and all(case['device'] == 'cuda' for case in cases)
        return {case['model']: run.Failure('no memory') if case['model'] == 'B' else
                dict(seconds=[0.25], bytes=2e6) for case in cases}

    monkeypatch.setattr(run, 'take_turns', take_turns)
    column = plan.Column('inference', 1, 8, 16, 3, ('A', 'B'))
    run.run([column], tmp_path / 'gpu.json', dict(commit='abc'))
    assert json.loads((tmp_path / 'gpu.json').read_text()) == dict(
        where=dict(commit='abc'), results=[dict(
            mode='inference', batch=1, height=8, width=16, precision='float32', model='A',
            seconds=[0.25], bytes=2e6)])
    out = capsys.readouterr().out
    assert 'A: 0.25 s, 2 MB' in out and 'B: no memory' in out
