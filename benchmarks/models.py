"""The models that the benchmarks compare: ResT, the port of its published code, and others."""
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hub import get_config
from torch import nn

from benchmarks.published import PublishedResT
from mmrest import ResT

ROOT = Path(__file__).resolve().parents[1]
REST = {'ResT-Lite': 'lite', 'ResT-Small': 'small', 'ResT-Base': 'base'}
PEERS = {
    'PVT-T': 'mmdet::pvt/retinanet_pvt-t_fpn_1x_coco.py',
    'PVTv2-B1': 'mmdet::pvt/retinanet_pvtv2-b1_fpn_1x_coco.py',
    'Swin-T': 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    'R-18': 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    'R-50': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
}
DETECTORS = {
    'Mask R-CNN ResT-Small': 'mmrest::mask_rcnn/rest_small_fpn_1x_coco.py',
    'Mask R-CNN R-18': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',  # and R_18
    'Mask R-CNN R-50': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'RetinaNet ResT-Small': 'mmrest::retinanet/rest_small_fpn_1x_coco.py',
    'RetinaNet R-18': 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    'RetinaNet R-50': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
}
R_18 = dict(backbone=dict(depth=18), neck=dict(in_channels=[64, 128, 256, 512]))
COMPILED, PUBLISHED = ', compiled', ', published'  # after a name: torch.compile of it, the port


def backbone(name: str, backend: str = 'auto') -> nn.Module:
    """A backbone with random weights that returns four stages and trains all its parameters.

    It has no stochastic depth, because the port of the published code has none.

    Args:
        name (str): A key of REST or PEERS, with PUBLISHED, COMPILED or both at its end or not.
        backend (str): Computes ResT's attention.
    """
    if name.endswith(COMPILED):
        return torch.compile(backbone(name.removesuffix(COMPILED), backend))
    if name.endswith(PUBLISHED):
        return PublishedResT(REST[name.removesuffix(PUBLISHED)])
    if name in REST:
        return ResT(REST[name], drop_path_rate=0., backend=backend)
    cfg = get_config(PEERS[name]).model.backbone
    if cfg.type == 'ResNet':
        cfg.update(frozen_stages=-1, norm_eval=False)
    else:
        cfg.update(drop_path_rate=0.)
    return build(cfg)


def detector(name: str) -> nn.Module:
    """A detector of DETECTORS as its config has it, with random weights; it keeps 100 boxes
    whatever they score."""
    cfg = get_config(DETECTORS[name]).model
    if name == 'Mask R-CNN R-18':
        cfg = Config(dict(model=cfg))
        cfg.merge_from_dict(dict(model=R_18))
        cfg = cfg.model
    cfg.test_cfg.get('rcnn', cfg.test_cfg).score_thr = 0.
    return build(cfg)


def build(cfg) -> nn.Module:
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    register_all_modules()
    cfg.get('backbone', cfg).pop('init_cfg', None)  # downloads ImageNet weights
    model = MODELS.build(cfg)
    model.init_weights()
    return model
