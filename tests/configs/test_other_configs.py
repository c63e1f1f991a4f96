"""ResT in the configs of MMDetection, MMSegmentation and MMPretrain."""
from importlib.util import find_spec
from pathlib import Path

import pytest
from mmengine.config import Config

from .step import build, train_and_predict

# A small ResT, so that most of the time goes to the heads.
ARCH = dict(
    embed_dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8),
    sr_ratios=(8, 4, 2, 1))
PYRAMID = dict(in_channels=[16, 32, 64, 128])
UPPER = dict(in_channels=[32, 64, 128], start_level=0)
# Config, changes to its neck, stages of the backbone; tests/mmcv_ops has twenty others.
DETECTORS = [
    ('reppoints/reppoints-moment_r50_fpn_1x_coco', UPPER, (1, 2, 3)),
    ('solo/solo_r50_fpn_1x_coco', PYRAMID, (0, 1, 2, 3)),
]


def check(base, out_indices, size, **changes):
    backbone = dict(_delete_=True, type='ResT', arch=ARCH, out_indices=out_indices,
                    drop_path_rate=0.)
    cfg = Config.fromstring(
        f'_base_ = {base!r}\nmodel = {dict(changes, backbone=backbone)!r}', '.py')
    train_and_predict(build(cfg), cfg.default_scope, size)


@pytest.mark.parametrize('base, neck, out_indices', DETECTORS)
def test_detectors(base, neck, out_indices):
    check(f'mmdet::{base}.py', out_indices, 128, neck=neck)


@pytest.mark.parametrize('base, changes, out_indices', [
    ('sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py', dict(neck=PYRAMID), (0, 1, 2, 3)),
    ('upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
     dict(decode_head=PYRAMID, auxiliary_head=dict(in_channels=64)), (0, 1, 2, 3)),
    ('segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', dict(decode_head=PYRAMID),
     (0, 1, 2, 3)),
    ('deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py',
     dict(decode_head=dict(in_channels=128, in_index=2, c1_in_channels=16),
          auxiliary_head=dict(in_channels=64, in_index=1)), (0, 2, 3)),
])
def test_segmenters(base, changes, out_indices):
    folder = Path(find_spec('mmseg').origin).parent / '.mim/configs'
    check(str(folder / base), out_indices, 64, pretrained=None,
          data_preprocessor=dict(size=(64, 64)), **changes)


def test_classifiers():
    check('mmpretrain::resnet/resnet18_8xb32_in1k.py', (3, ), 64, head=dict(in_channels=128))
