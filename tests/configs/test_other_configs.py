"""ResT in other people's configs, by the ten lines of docs/own_config.md."""
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).parents[2]
# A small ResT, so that the heads are what takes time.
ARCH = dict(
    embed_dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8),
    sr_ratios=(8, 4, 2, 1))
FOUR, THREE = [16, 32, 64, 128], [32, 64, 128]
PYRAMID = dict(in_channels=FOUR)
UPPER = dict(in_channels=THREE, start_level=0)
# Config, what its neck is told, and the stages that it takes.
DETECTORS = [
    ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', UPPER, (1, 2, 3)),
    ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', PYRAMID, (0, 1, 2, 3)),
    ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', PYRAMID, (0, 1, 2, 3)),
    ('mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py', PYRAMID, (0, 1, 2, 3)),
    ('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', UPPER, (1, 2, 3)),
    ('mmdet::atss/atss_r50_fpn_1x_coco.py', UPPER, (1, 2, 3)),
    ('mmdet::gfl/gfl_r50_fpn_1x_coco.py', UPPER, (1, 2, 3)),
    ('mmdet::reppoints/reppoints-moment_r50_fpn_1x_coco.py', UPPER, (1, 2, 3)),
    ('mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py', dict(in_channels=FOUR), (0, 1, 2, 3)),
    ('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', dict(in_channels=THREE), (1, 2, 3)),
    ('mmdet::detr/detr_r50_8xb2-150e_coco.py', dict(in_channels=[128]), (3, )),
    ('mmdet::solo/solo_r50_fpn_1x_coco.py', PYRAMID, (0, 1, 2, 3)),
]


def options(out_indices):
    return dict(_delete_=True, type='ResT', arch=ARCH, out_indices=out_indices,
                drop_path_rate=0.)


def build(base, model):
    text = f'_base_ = {base!r}\n' + f'model = {model!r}\n'
    cfg = Config.fromstring(
        "custom_imports = dict(imports=['mmrest'], allow_failed_imports=False)\n" + text, '.py')
    scope = cfg.default_scope
    utils = __import__(f'{scope}.utils', fromlist=['register_all_modules'])
    utils.register_all_modules(init_default_scope=False)
    init_default_scope(scope)
    if scope == 'mmpretrain':
        cfg.model.data_preprocessor = cfg.data_preprocessor
    torch.manual_seed(0)
    without_weights(cfg.model)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))  # it refuses a CPU
    model.init_weights()
    return model


def without_weights(node):
    """Nothing is fetched in a test."""
    if isinstance(node, dict):
        if (node.get('init_cfg') or {}).get('type') == 'Pretrained':
            node.pop('init_cfg')
        node.pop('pretrained', None)
        node = node.values()
    if isinstance(node, (list, tuple, type({}.values()))):
        for child in node:
            without_weights(child)


def check(model, data):
    model.train()
    batch = model.data_preprocessor(data, True)
    loss, _ = model.parse_losses(model(**batch, mode='loss'))
    loss.backward()
    for name, p in model.backbone.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
        if not name.endswith('transform_conv.bias'):  # zero: softmax is blind to it
            assert p.grad.any(), name
    model.eval()
    with torch.no_grad():
        assert len(model.test_step(data)) == 2


@pytest.mark.parametrize('base, neck, out_indices', DETECTORS)
def test_detectors(base, neck, out_indices):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData
    changes = dict(backbone=options(out_indices), neck=neck)
    if 'dino' in base:  # as many queries as a small image has tokens
        changes['num_queries'] = 30
    model = build(base, changes)
    size = 128
    masks = np.zeros((1, size, size), np.uint8)
    masks[0, 20:90, 30:100] = 1
    sample = DetDataSample(
        metainfo=dict(img_shape=(size, size), ori_shape=(size, size), img_id=0,
                      scale_factor=(1., 1.), batch_input_shape=(size, size)),
        gt_instances=InstanceData(
            bboxes=torch.tensor([[30., 20., 100., 90.]]), labels=torch.tensor([3]),
            masks=BitmapMasks(masks, size, size)))
    image = torch.randint(0, 255, (3, size, size), dtype=torch.uint8)
    check(model, dict(inputs=[image, image], data_samples=[sample, sample.clone()]))


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
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    size = 64
    mmseg = Path(find_spec('mmseg').origin).parent / '.mim/configs'
    changes = dict(changes, pretrained=None, backbone=options(out_indices),
                   data_preprocessor=dict(size=(size, size)))
    model = build(str(mmseg / base), changes)
    image = torch.randint(0, 255, (3, size, size), dtype=torch.uint8)
    sample = SegDataSample(
        metainfo=dict(img_shape=(size, size), ori_shape=(size, size)),
        gt_sem_seg=PixelData(data=torch.randint(0, 150, (1, size, size))))
    check(model, dict(inputs=[image, image], data_samples=[sample, sample.clone()]))


def test_classifiers():
    from mmpretrain.structures import DataSample
    model = build('mmpretrain::resnet/resnet18_8xb32_in1k.py', dict(
        backbone=options((3, )), head=dict(in_channels=128)))
    image = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    samples = [DataSample().set_gt_label(i) for i in (1, 2)]
    check(model, dict(inputs=image, data_samples=samples))


def test_the_example_in_the_docs_is_a_config():
    text = (ROOT / 'docs/own_config.md').read_text()
    cfg = Config.fromstring(re.search(r'```python\n(.*?)```', text, re.S)[1], '.py')
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    assert type(model.backbone).__name__ == 'ResT'
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
