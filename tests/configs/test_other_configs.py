"""ResT in configs of MMDetection and MMSegmentation whose heads none of ours has."""
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
SEGMENTER = dict(pretrained=None, data_preprocessor=dict(size=(64, 64)))


# tests/mmcv_ops has twenty other detectors.
@pytest.mark.parametrize('base, out_indices, size, changes', [
    ('mmdet/reppoints/reppoints-moment_r50_fpn_1x_coco.py', (1, 2, 3), 128,
     dict(neck=dict(in_channels=[32, 64, 128], start_level=0))),
    ('mmdet/solo/solo_r50_fpn_1x_coco.py', (0, 1, 2, 3), 128, dict(neck=PYRAMID)),
    ('mmseg/segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', (0, 1, 2, 3), 64,
     dict(SEGMENTER, decode_head=PYRAMID)),
    ('mmseg/deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py', (0, 2, 3), 64,
     dict(SEGMENTER, decode_head=dict(in_channels=128, in_index=2, c1_in_channels=16),
          auxiliary_head=dict(in_channels=64, in_index=1))),
])
def test_a_training_step_and_a_prediction(base, out_indices, size, changes):
    package, _, base = base.partition('/')
    base = Path(find_spec(package).origin).parent / '.mim/configs' / base
    backbone = dict(_delete_=True, type='ResT', arch=ARCH, out_indices=out_indices,
                    drop_path_rate=0.)
    cfg = Config.fromstring(
        f'_base_ = {str(base)!r}\nmodel = {dict(changes, backbone=backbone)!r}', '.py')
    train_and_predict(build(cfg), cfg.default_scope, size)
