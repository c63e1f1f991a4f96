"""The metric of a config's validation data, with an exported file in the model's place.

The data set, its pipeline and the metric are mm's own.
"""
import contextlib
import io
import json
from typing import Dict, List, Optional

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData, PixelData
from mmengine.utils import track_iter_progress
from torch import Tensor

from ..apis import package_of
from ..errors import UserError

# The last part of the names of what is compared: AP, top-1, mIoU.
METRICS = ('bbox_mAP', 'segm_mAP', 'mAP', 'top1', 'mIoU')


class OnnxPredictor:
    """An exported whole model that ONNX Runtime runs, with the ``test_step`` of mm's models.

    Args:
        content (bytes): The file's.
    """

    def __init__(self, content: bytes):
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.enable_mem_pattern = False  # plans for every size of image
        self.session = onnxruntime.InferenceSession(
            content, options, providers=['CPUExecutionProvider'])
        self.names = [output.name for output in self.session.get_outputs()]
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.activation, self.mask_threshold = (
            json.loads(metadata.get(name, 'null')) for name in ('activation', 'mask_threshold'))

    def run(self, images: np.ndarray) -> Dict[str, np.ndarray]:
        """The outputs by name, of RGB images (B, 3, H, W), uint8."""
        return dict(zip(self.names, self.session.run(self.names, dict(image=images))))

    def test_step(self, data: dict) -> list:
        """mm's data samples with what is found in their images.

        Args:
            data (dict): Of a test pipeline: ``inputs``, BGR images (3, H, W), uint8, and
                ``data_samples``.
        """
        for image, sample in zip(data['inputs'], data['data_samples']):
            found = self.run(image.flip(0)[None].numpy())
            outputs = {name: torch.from_numpy(output[0]) for name, output in found.items()}
            if 'logits' in outputs:
                scores = getattr(outputs['logits'], self.activation)(-1)
                sample.set_pred_score(scores).set_pred_label(scores.argmax())
            elif 'boxes' in outputs:
                sample.pred_instances = self.instances(outputs, sample)
            else:
                labels = outputs['labels'][None, None].float()  # (1, 1, H, W)
                labels = F.interpolate(labels, size=sample.ori_shape[:2], mode='nearest-exact')
                sample.pred_sem_seg = PixelData(data=labels[0].long())
        return data['data_samples']

    def instances(self, outputs: Dict[str, Tensor], sample) -> InstanceData:
        """Boxes, and masks if there are any, in pixels of the original image."""
        there = outputs['labels'] >= 0
        boxes, scores, labels = (outputs[name][there] for name in ('boxes', 'scores', 'labels'))
        boxes = boxes / boxes.new_tensor(sample.get('scale_factor', (1., 1.))).repeat(2)
        found = InstanceData(bboxes=boxes, scores=scores, labels=labels)
        if 'masks' in outputs:
            height, width = sample.ori_shape[:2]
            found.masks = paste(
                outputs['masks'][there], boxes, height, width, self.mask_threshold)
        return found


def paste(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    """Probabilities (n, s, s) in boxes (n, 4) -> masks (n, height, width), bool."""
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
    pasted = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for i in range(len(boxes)):  # as mm on a CPU: it pastes into the pixels of one box
        crop, where = _do_paste_mask(masks[i:i + 1, None], boxes[i:i + 1], height, width)
        pasted[i:i + 1][(slice(None), *where)] = crop >= threshold
    return pasted


class Validation:
    """A config's validation data, and what its metric says of models.

    Args:
        cfg (Config): From :func:`~mmrest.apis.read_config`.
        limit (int, optional): How many pictures are taken, spread evenly over all. By default
            all are.

    Raises:
        UserError: The config has no validation data, or no metric.
        FileNotFoundError: The data is not there.
    """

    def __init__(self, cfg: Config, limit: Optional[int] = None):
        for name in ('val_dataloader', 'val_evaluator'):
            if not cfg.get(name):
                raise UserError(f'the config has no {name}: without it, nothing says whether a '
                                'smaller file is as good')
        if limit is not None and limit < 1:
            raise UserError(f'limit={limit} must be 1 or more')
        self.percent = package_of(cfg) != 'mmdet'
        self.dataset = DATASETS.build(cfg.val_dataloader.dataset)
        self.evaluator = Evaluator(cfg.val_evaluator)
        self.evaluator.dataset_meta = self.dataset.metainfo
        total = len(self.dataset)
        number = min(limit or total, total)
        self.indices: List[int] = [i * total // number for i in range(number)]

    def __call__(self, model) -> Dict[str, float]:
        """Those of :data:`METRICS` that the config's metrics return, as fractions of 1.

        Args:
            model (OnnxPredictor | nn.Module): Has ``test_step``.
        """
        ids = []
        for i in track_iter_progress(self.indices):
            data = pseudo_collate([self.dataset[i]])
            samples = model.test_step(data)
            self.evaluator.process(data_samples=samples, data_batch=data)
            ids += [sample.get('img_id') for sample in samples]
        for metric in self.evaluator.metrics:
            if hasattr(metric, 'img_ids'):  # CocoMetric's, by default those of the whole file
                metric.img_ids = ids
        with contextlib.redirect_stdout(io.StringIO()):  # of pycocotools
            found = self.evaluator.evaluate(len(self.indices))
        return {name: value / 100 if self.percent else value for name, value in found.items()
                if name.rpartition('/')[2] in METRICS}
