"""What mm's own data sets and loading steps make of the files, in processes."""
import contextlib
import copy
import hashlib
import importlib
import os
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from .formats.photos import read_header

CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
WORKERS = min(CORES or 1, 16)
OTHER_SIZE = 'the size of its run lengths is not that of the image'


@dataclass
class Sample:
    """What mm loads for one image.

    Attributes:
        error (str): Why it does not; '' if it does.
        missing (str): The file that is not there.
        step (str): Name of the loading step that ended with the error.
        size (tuple): Width and height.
        digest (bytes): A hash of the pixels.
        turned (bool): Whether EXIF rotates or mirrors it.
        dark (bool): Whether the file has over 8 bits, and the 8 that mm takes are below 64.
        labels (list[int]): The classes of the objects.
        learned (list[bool]): Whether mm learns them; crowds it does not.
        lost (dict): What is wrong with an object, by its number among those of the image.
        pairs (list): Numbers of two boxes of one class with an IoU above 0.8.
        label (int, optional): The class of the image.
        pixels (dict): How often each value is in the class map.
        map (str): What is wrong with the class map.
    """

    error: str = ''
    missing: str = ''
    step: str = ''
    size: Tuple[int, int] = (0, 0)
    digest: bytes = b''
    turned: bool = False
    dark: bool = False
    labels: List[int] = field(default_factory=list)
    learned: List[bool] = field(default_factory=list)
    lost: Dict[int, str] = field(default_factory=dict)
    pairs: List[Tuple[int, int]] = field(default_factory=list)
    label: Optional[int] = None
    pixels: Dict[int, int] = field(default_factory=dict)
    map: str = ''


def build(cfg: ConfigDict, scope: str) -> BaseDataset:
    """The dataset of a config with its loading steps alone, and nothing loaded yet."""
    init_default_scope(scope)
    importlib.import_module(f'{scope}.datasets')
    steps = [step.get('transform', step) for step in cfg.pipeline]  # SkipUnreadable's
    steps = [step for step in steps if step['type'].startswith('Load')]
    return DATASETS.build(dict(cfg, pipeline=steps, lazy_init=True))


def load_lists(dataset: BaseDataset) -> Tuple[List[dict], List[dict]]:
    """All entries of a dataset, and those that mm does not leave out."""
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
        dataset.data_list = dataset.load_data_list()  # pycocotools prints
    return dataset.data_list, dataset.filter_data()


def load_samples(samples: 'Samples', workers: int = WORKERS) -> Iterator[Sample]:
    """Load each sample in a process. One that ends its process has this as its error."""
    done = 0
    while done < len(samples):
        try:
            for sample in _loader(samples, range(done, len(samples)), workers):
                yield sample
                done += 1
        except RuntimeError:  # by one of those that the processes were at
            for i in range(done, min(done + 2 * workers, len(samples))):
                try:
                    yield from _loader(samples, [i], 1)
                except RuntimeError as error:
                    yield Sample(error=f'it ends the process that loads it: {error}')
                done += 1


def _loader(samples, numbers, workers):
    return DataLoader(samples, sampler=numbers, collate_fn=itemgetter(0), num_workers=workers)


class Samples(Dataset):
    """Loads entries as mm does, and sums up what came."""

    def __init__(self, infos: Sequence[dict], steps: Sequence):
        self.infos, self.steps = infos, steps

    def __len__(self) -> int:
        return len(self.infos)

    def __getitem__(self, i: int) -> Sample:
        info = self.infos[i]
        sample = self._load(info)
        if sample.step.endswith('Annotations') and len(info.get('instances', ())) > 1:
            for number, thing in enumerate(info['instances']):  # which of them is it?
                alone = self._load(dict(info, instances=[thing]))
                wrong = alone.error or ''.join(alone.lost.values())
                sample.lost.update({number: wrong} if wrong else {})
        return sample

    def _load(self, info):
        sample, found = Sample(), copy.deepcopy(info)
        try:
            for step in self.steps:
                sample.step = type(step).__name__
                found = step(found)
        except Exception as error:  # whatever it is, it would end a training, too
            if isinstance(error, FileNotFoundError):
                sample.missing = error.filename or info['img_path']
            text = getattr(error, 'err', None) or str(error) or repr(error)  # cv2's, short
            sample.error = text.splitlines()[0].replace(f': {info["img_path"]}', '')
            if len(info.get('instances', ())) == 1 and sample.step.endswith('Annotations'):
                sample.lost = {0: sample.error}
            return sample
        sample.step = ''
        _describe_image(sample, found['img'], info['img_path'])
        sample.label = found.get('gt_label')
        if 'gt_bboxes' in found:
            _describe_objects(sample, found)
        if 'gt_seg_map' in found:
            _describe_map(sample, found['gt_seg_map'], info['seg_map_path'])
        return sample


def _describe_image(sample, pixels, path):
    sample.size = pixels.shape[1::-1]
    pixels = np.ascontiguousarray(pixels)
    sample.digest = hashlib.sha1(pixels).digest() + str(pixels.shape).encode()
    if read_header(path)[1] != 1:
        stored = _decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        sample.turned = stored.shape != pixels.shape or bool((stored != pixels).any())
    if pixels.max() < 64:
        sample.dark = _decode(path, cv2.IMREAD_UNCHANGED).dtype != np.uint8


def _decode(path, flags):
    return cv2.imdecode(np.fromfile(path, np.uint8), flags)


def _describe_objects(sample, found):
    from mmdet.structures.bbox import bbox_overlaps
    boxes = found['gt_bboxes'].tensor
    labels = torch.as_tensor(found['gt_bboxes_labels'])
    learned = ~torch.as_tensor(found['gt_ignore_flags'])
    sample.labels, sample.learned = labels.tolist(), learned.tolist()
    if len(boxes) > 1:
        alike = (labels[:, None] == labels) & learned[:, None] & learned
        overlaps = bbox_overlaps(boxes, boxes) * alike
        sample.pairs = (overlaps.triu(diagonal=1) > 0.8).nonzero().tolist()
    masks = found.get('gt_masks')
    if masks is not None and len(masks) != len(boxes):  # BitmapMasks cuts larger ones up
        sample.lost = dict.fromkeys(range(len(boxes)), OTHER_SIZE)
    elif masks is not None and len(masks):
        sample.lost = _check_masks(masks, boxes, found['img'].shape[:2], learned)


def _check_masks(masks, boxes, size, learned):
    """What is wrong with the masks that mm made, by number."""
    wrong, margin = {}, torch.tensor([-2., -2., 2., 2.])  # masks are rounded to pixels
    limits = torch.tensor([size[1], size[0]] * 2)
    for i, (mask, own) in enumerate(zip(masks.masks, masks.get_bboxes('hbox').tensor)):
        box = torch.minimum(boxes[i].clamp(min=0), limits) + margin
        own = own + margin
        if not mask.any():
            wrong[i] = 'no pixel of the image is within its outline'
        elif learned[i] and _overlap(box, own) < 0.5:
            wrong[i] = "its 'bbox' is not around its outline"
    return wrong


def _overlap(a, b):
    sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
    both = sides.prod()
    return both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both)


def _describe_map(sample, values, path):
    if values.ndim != 2:
        sample.map = 'a picture in colours; a map has one channel of class numbers'
        return
    if values.shape[::-1] != sample.size:
        sample.map = 'another size than the image'
    with Image.open(path) as image:
        if image.mode not in ('1', 'L', 'P'):
            stored = np.array(image)
            if (stored != values).any():
                sample.map = (f'values up to {stored.max()}: mm keeps the last 8 bits of each, '
                              'which makes other classes of them')
    sample.pixels = {i: n for i, n in enumerate(np.bincount(values.ravel()).tolist()) if n}
