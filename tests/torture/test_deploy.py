"""AP, mIoU and top-1 of exported models are those of tools/test.py, on digits."""
import importlib
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmrest.apis import read_config
from mmrest.deploy import Smaller, smaller

from ..deploy.models import digits_config
from ..tools.conftest import ROOT, call

BACKBONE = 'model.backbone.init_cfg.checkpoint=work_dirs/rest_lite_digits/iter_300.pth'
AP = 'coco/bbox_mAP'
# Iterations, metrics, and options. The first is where the others start from.
TRAININGS = {
    'configs/classification/rest_lite_digits.py': (
        300, ['accuracy/top1'], ['param_scheduler.total_steps=300']),
    'configs/mask_rcnn/rest_lite_fpn_digits.py': (
        300, [AP, 'coco/segm_mAP'], [BACKBONE, 'param_scheduler.1.end=300']),
    'configs/retinanet/rest_lite_retinanet_digits.py': (
        300, [AP], [BACKBONE, 'param_scheduler.1.end=300']),
    'gfl.py': (150, [AP], [BACKBONE, 'param_scheduler.1.end=150']),
    'configs/semantic_fpn/rest_lite_semantic_fpn_digits.py': (
        200, ['mIoU'], ['load_from=work_dirs/rest_lite_fpn_digits/iter_300.pth',
                        'param_scheduler.1.end=200']),
}


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """Digits, and one model of each task, and of a family without a config of ours."""
    folder = tmp_path_factory.mktemp('deploy')
    for name in ('configs', 'tools'):
        (folder / name).symlink_to(ROOT / name)
    digits_config('gfl').dump(folder / 'gfl.py')
    tool(folder, 'dataset_converters/digits_to_coco.py', 'data/digits')
    for config, (iterations, _, options) in TRAININGS.items():
        tool(folder, 'train.py', config, '--cfg-options', *options,
             f'train_cfg.max_iters={iterations}', f'train_cfg.val_interval={iterations}')
    return folder


def tool(folder, script, *args):
    done = call(ROOT / 'tools' / script, *args, cwd=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def runtimes(path):
    """The exported model by ONNX Runtime, and by OpenVINO where that is installed."""
    run_onnx = importlib.import_module('run_onnx')
    yield 'onnxruntime', run_onnx.load(path)
    try:
        import onnx
        import openvino
    except ImportError:
        print('OpenVINO is not installed: skipped')
        return
    compiled = openvino.Core().compile_model(
        path, 'CPU', dict(INFERENCE_PRECISION_HINT='f32'))
    names = [output.any_name for output in compiled.outputs]

    def run(image):
        return dict(zip(names, compiled(image).values()))

    yield 'openvino', run_onnx.Model(
        run, {prop.key: prop.value for prop in onnx.load(path).metadata_props})


def average_precision(model, folder, kind):
    truth = COCO(str(folder / 'data/digits/annotations/instances_val.json'))
    found = []
    for image in truth.dataset['images']:
        one = model(Image.open(folder / 'data/digits/val' / image['file_name']))
        for i, (x, y, x2, y2) in enumerate(one['bboxes']):
            box = dict(image_id=image['id'], category_id=one['labels'][i] + 1,
                       score=one['scores'][i], bbox=[x, y, x2 - x, y2 - y])
            if 'masks' in one:
                mask = one['masks'][i]
                box['segmentation'] = mask_utils.frPyObjects(mask, *mask['size'])
            found.append(box)
    evaluation = COCOeval(truth, truth.loadRes(found), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]


def mean_iou(model, folder):
    both = np.zeros((11, 11))
    for path in sorted((folder / 'data/digits/val').glob('*')):
        truth = np.asarray(Image.open(folder / f'data/digits/semantic/val/{path.stem}.png'))
        found = model(Image.open(path))['labels']
        np.add.at(both, (truth[truth < 11], found[truth < 11]), 1)
    hits = both.diagonal()
    return 100 * (hits / (both.sum(0) + both.sum(1) - hits)).mean()


def top1(model, folder):
    hits = [model(Image.open(path))['pred_class'] == path.parent.name
            for path in (folder / 'data/digits/cls/val').glob('*/*')]
    return 100 * np.mean(hits)


def check_smaller(config, path, images):
    """Half the bytes and a third, and on 50 pictures hardly another metric."""
    onnx = pytest.importorskip('onnx')
    proto = onnx.load(path)
    for int8, most in (((), 0.55), (images, 0.33)):
        make = Smaller(read_config(config), int8, limit=50)
        assert make(proto).ByteSize() < most * proto.ByteSize()
        print(make.sentence)


METRICS = {
    'accuracy/top1': (top1, 0.05), 'mIoU': (mean_iou, 0.05),
    'coco/bbox_mAP': (partial(average_precision, kind='bbox'), 1e-3),
    'coco/segm_mAP': (partial(average_precision, kind='segm'), 1e-3)}


@pytest.mark.slow
@pytest.mark.parametrize('config', TRAININGS)
def test_metrics_of_exported_models(project, config, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/deployment'))
    monkeypatch.chdir(project)
    monkeypatch.setattr(smaller, 'FALL', 0.03)  # of few pictures, and a short training
    iterations, metrics, _ = TRAININGS[config]
    name = Path(config).stem
    checkpoint = f'work_dirs/{name}/iter_{iterations}.pth'
    log = tool(project, 'test.py', config, checkpoint)
    images = sorted((project / 'data/digits/val').glob('*'))[:9]
    said = tool(project, 'deployment/export_onnx.py', config, checkpoint, f'{name}.onnx',
                '--images', *images[:3])
    assert ' in 5 pictures' in said or ' of 5 pictures' in said
    for metric in metrics:
        measure, tolerance = METRICS[metric]
        wanted = float(re.findall(rf'{metric}: ([\d.]+)', log)[-1])
        assert wanted > 0
        for runtime, model in runtimes(f'{name}.onnx'):
            found = measure(model, project)
            print(f'{name}, {metric} by {runtime}: {found}, mm {wanted}')
            assert found == pytest.approx(wanted, abs=tolerance), runtime
    check_smaller(config, f'{name}.onnx', list(map(str, images)))
