"""AP of an exported detector of another family, GFL, is that of tools/test.py, on digits."""
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
def test_ap_of_an_exported_detector(project, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/deployment'))
    cfg = digits_config('gfl')
    cfg.model.backbone.init_cfg.checkpoint = f'work_dirs/rest_lite_digits/iter_{CLASSIFIER}.pth'
    cfg.train_cfg.update(max_iters=ITERATIONS, val_interval=ITERATIONS)
    cfg.param_scheduler[1].end = ITERATIONS
    cfg.dump(project / 'gfl.py')
    checkpoint = f'work_dirs/gfl/iter_{ITERATIONS}.pth'
    tool(project, 'train.py', 'gfl.py')
    log = tool(project, 'test.py', 'gfl.py', checkpoint)
    images = sorted((project / 'data/digits/val').glob('*'))[:3]
    tool(project, 'deployment/export_onnx.py', 'gfl.py', checkpoint, 'gfl.onnx',
         '--images', *images)
    wanted = float(re.search(r'coco/bbox_mAP: ([\d.]+)', log)[1])
    assert wanted > 0
    for runtime, model in runtimes(str(project / 'gfl.onnx')):
        assert average_precision(model, project, 'bbox') == pytest.approx(
            wanted, abs=1e-3), runtime
