"""The models that the benchmarks compare: ResT, ports of the published code, and others."""
from pathlib import Path

import torch
from mmengine.hub import get_config
from torch import nn

from benchmarks.published import PublishedResT
from benchmarks.publishedv2 import PublishedResTV2
from mmrest import ResT, ResTV2

ROOT = Path(__file__).resolve().parents[1]
REST = {'ResT-Lite': 'lite', 'ResT-Small': 'small', 'ResT-Base': 'base', 'ResT-Large': 'large'}
RESTV2 = {'ResTv2-Tiny': 'tiny', 'ResTv2-Base': 'base'}
PUBLISHED = {
    f'{name}, published': (kind, arch)
    for kind, archs in ((PublishedResT, REST), (PublishedResTV2, RESTV2))
    for name, arch in archs.items()
}
PEERS = {
    'PVT-T': 'mmdet::pvt/retinanet_pvt-t_fpn_1x_coco.py',
    'PVT-S': 'mmdet::pvt/retinanet_pvt-s_fpn_1x_coco.py',
    'PVTv2-B1': 'mmdet::pvt/retinanet_pvtv2-b1_fpn_1x_coco.py',
    'PVTv2-B2': 'mmdet::pvt/retinanet_pvtv2-b2_fpn_1x_coco.py',
    'Swin-T': 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    'R-18': 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    'R-50': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
}
DETECTORS = {
    'Mask R-CNN ResT-Small': 'mmrest::mask_rcnn/rest_small_fpn_1x_coco.py',
    'Mask R-CNN R-50': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'RetinaNet ResT-Small': 'mmrest::retinanet/rest_small_fpn_1x_coco.py',
    'RetinaNet R-50': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
}
COMPILED = ', compiled'  # after the name of any backbone: torch.compile of it


def backbone(name: str, backend: str = 'auto') -> nn.Module:
    """A backbone with random weights that returns four stages and trains all its parameters.

    It has no stochastic depth, because the port of the published code has none.

    Args:
        name (str): A key of REST, RESTV2, PUBLISHED or PEERS, with COMPILED at its end or not.
        backend (str): Computes ResT's attention.
    """
    if name.endswith(COMPILED):
        return torch.compile(backbone(name[:-len(COMPILED)], backend))
    if name in REST:
        return ResT(REST[name], drop_path_rate=0., backend=backend)
    if name in RESTV2:
        return ResTV2(RESTV2[name], drop_path_rate=0., backend=backend)
    if name in PUBLISHED:
        kind, arch = PUBLISHED[name]
        return kind(arch)
    cfg = get_config(PEERS[name]).model.backbone
    cfg.pop('init_cfg')  # downloads ImageNet weights
    if cfg.type == 'ResNet':
        cfg.update(frozen_stages=-1, norm_eval=False)
    else:
        cfg.update(drop_path_rate=0.)
    return build(cfg)


def detector(name: str) -> nn.Module:
    """A detector of DETECTORS as its config has it, but with random weights."""
    cfg = get_config(DETECTORS[name]).model
    cfg.backbone.pop('init_cfg', None)
    return build(cfg)


def build(cfg) -> nn.Module:
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    register_all_modules()
    model = MODELS.build(cfg)
    model.init_weights()
    return model
