"""AP of exported detectors of other families is that of tools/test.py, on digits."""
import re

import pytest

from tests.deploy.models import digits_config
from tests.tools.conftest import ROOT

from .test_deploy import average_precision, runtimes, tool

ITERATIONS = 150
CLASSIFIER = 200


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """Digits, and a backbone that knows them."""
    folder = tmp_path_factory.mktemp('families')
    for name in ('configs', 'tools'):
        (folder / name).symlink_to(ROOT / name)
    tool(folder, 'dataset_converters/digits_to_coco.py', 'data/digits')
    tool(folder, 'train.py', 'configs/classification/rest_lite_digits.py', '--cfg-options',
         f'param_scheduler.total_steps={CLASSIFIER}', f'train_cfg.max_iters={CLASSIFIER}',
         f'train_cfg.val_interval={CLASSIFIER}')
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('family', ['gfl', 'cascade_mask_rcnn'])
def test_ap_of_exported_detectors(project, family, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/deployment'))
    cfg = digits_config(family)
    cfg.model.backbone.init_cfg.checkpoint = f'work_dirs/rest_lite_digits/iter_{CLASSIFIER}.pth'
    cfg.train_cfg.update(max_iters=ITERATIONS, val_interval=ITERATIONS)
    cfg.param_scheduler[1].end = ITERATIONS
    cfg.dump(project / f'{family}.py')
    checkpoint = f'work_dirs/{family}/iter_{ITERATIONS}.pth'
    tool(project, 'train.py', f'{family}.py')
    log = tool(project, 'test.py', f'{family}.py', checkpoint)
    images = sorted((project / 'data/digits/val').glob('*'))[:3]
    tool(project, 'deployment/export_onnx.py', f'{family}.py', checkpoint, f'{family}.onnx',
         '--images', *images)
    for kind, wanted in re.findall(r'coco/(bbox|segm)_mAP: ([\d.]+)', log):
        assert float(wanted) > 0
        for runtime, model in runtimes(str(project / f'{family}.onnx')):
            assert average_precision(model, project, kind) == pytest.approx(
                float(wanted), abs=1e-3), runtime
