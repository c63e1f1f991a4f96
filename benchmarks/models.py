"""What the benchmarks build: ResT, its published port, and its peers as mmdet's configs say."""
from pathlib import Path

import torch
from mmengine.hub import get_config
from torch import nn

from benchmarks.published import PublishedResT
from mmrest import ResT

ROOT = Path(__file__).resolve().parents[1]
REST = {'ResT-Lite': 'lite', 'ResT-Small': 'small', 'ResT-Base': 'base', 'ResT-Large': 'large'}
PUBLISHED = {f'{name}, published': arch for name, arch in REST.items()}
COMPILED = {f'{name}, compiled': arch for name, arch in PUBLISHED.items()}
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


def backbone(name: str, backend: str = 'auto') -> nn.Module:
    """A backbone that returns four stages, with random weights, all of them trained.

    Without stochastic depth, which the published port does not have.

    Args:
        name (str): A key of REST, PUBLISHED, COMPILED or PEERS.
        backend (str): Of ResT's attention.

    Raises:
        ValueError: The name is none of these.
    """
    if name in REST:
        return ResT(REST[name], drop_path_rate=0., backend=backend)
    if name in PUBLISHED:
        return PublishedResT(PUBLISHED[name])
    if name in COMPILED:
        return torch.compile(PublishedResT(COMPILED[name]))
    if name not in PEERS:
        raise ValueError(f'model={name!r} must be one of '
                         f'{[*REST, *PUBLISHED, *COMPILED, *PEERS]}')
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    register_all_modules()
    cfg = get_config(PEERS[name]).model.backbone
    cfg.pop('init_cfg')  # ImageNet weights, to be downloaded
    if cfg.type == 'ResNet':
        cfg.update(frozen_stages=-1, norm_eval=False)
    else:
        cfg.update(drop_path_rate=0.)
    model = MODELS.build(cfg)
    model.init_weights()
    return model


def detector(name: str) -> nn.Module:
    """A detector of DETECTORS as its config ships it, but with a random backbone.

    Raises:
        ValueError: The name is not in DETECTORS.
    """
    if name not in DETECTORS:
        raise ValueError(f'model={name!r} must be one of {[*DETECTORS]}')
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    register_all_modules()
    cfg = get_config(DETECTORS[name]).model
    cfg.backbone.pop('init_cfg', None)
    model = MODELS.build(cfg)
    model.init_weights()
    return model
