"""A training step and a prediction for the model of any config, on two small images."""
import numpy as np
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope

from mmrest.apis import build_model


def build(cfg):
    """Build a config's model with random weights; SyncBN becomes BN, which runs on a CPU."""
    init_default_scope(cfg.default_scope)
    _remove_pretrained(cfg.model)
    torch.manual_seed(0)
    model = revert_sync_batchnorm(build_model(cfg))
    model.init_weights()
    return model


def _remove_pretrained(node):
    """Tests download nothing."""
    if isinstance(node, dict):
        if (node.get('init_cfg') or {}).get('type') == 'Pretrained':
            node.pop('init_cfg')
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            _remove_pretrained(child)


def train_and_predict(model, scope, size):
    """Check that each parameter of the backbone has a finite gradient that is not zero."""
    model.train()
    data = model.data_preprocessor(_batch(scope, size), True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    assert torch.isfinite(loss)
    loss.backward()
    for name, p in model.backbone.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
        if not name.endswith('transform_conv.bias'):  # softmax cancels it: its gradient is 0
            assert p.grad.any(), name
    model.eval()
    assert len(model.test_step(_batch(scope, size))) == 2


def _batch(scope, size):
    """Two random images with labels, class maps, or boxes and masks."""
    image = torch.randint(0, 255, (3, size, size), dtype=torch.uint8)
    if scope == 'mmpretrain':
        from mmpretrain.structures import DataSample
        return dict(inputs=torch.stack([image, image]),
                    data_samples=[DataSample().set_gt_label(i) for i in (0, 1)])
    shape = dict(img_shape=(size, size), ori_shape=(size, size))
    if scope == 'mmseg':
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample
        sample = SegDataSample(
            metainfo=shape,
            gt_sem_seg=PixelData(data=torch.randint(0, 2, (1, size, size))))
    else:
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks
        from mmengine.structures import InstanceData
        low, high = size // 4, 3 * size // 4
        masks = np.zeros((1, size, size), np.uint8)
        masks[0, low:high, low:high] = 1
        sample = DetDataSample(
            metainfo=dict(shape, scale_factor=(1., 1.), img_id=0),
            gt_instances=InstanceData(
                bboxes=torch.tensor([[low, low, high, high]]).float(),
                labels=torch.tensor([1]),
                masks=BitmapMasks(masks, size, size)))
    return dict(inputs=[image, image], data_samples=[sample, sample.clone()])
