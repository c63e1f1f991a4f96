"""Tiny COCO data sets with faults, and a Mask R-CNN of our configs that trains on them."""
import copy
import json

import cv2
import numpy as np

from .training import ARCH, ROOT

CLASSES = ('square', 'disc')
DETECTOR = f'''
_base_ = {str(ROOT / 'configs/mask_rcnn/rest_lite_fpn_1x_coco.py')!r}
metainfo = dict(classes={CLASSES})
model = dict(
    backbone=dict(_delete_=True, type='ResT', arch={ARCH}, out_indices=(0, 1),
                  drop_path_rate=0.3),
    neck=dict(in_channels=[8, 16], out_channels=16, num_outs=3),
    rpn_head=dict(
        in_channels=16, feat_channels=16,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16, featmap_strides=[4, 8]),
        bbox_head=dict(in_channels=16, fc_out_channels=16, num_classes=2),
        mask_roi_extractor=dict(out_channels=16, featmap_strides=[4, 8]),
        mask_head=dict(num_convs=1, in_channels=16, conv_out_channels=16, num_classes=2)))
train_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(metainfo=metainfo, serialize_data=False))
val_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(metainfo=metainfo, serialize_data=False))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1))
randomness = dict(seed=0)
'''
OPTIONS = ['train_dataloader.dataset.pipeline.2.scales=[(96,64),(96,80)]',
           'val_dataloader.dataset.pipeline.1.scale=(96,64)']


def annotations(num_images=6):
    """One object of each class on every image of 64 x 96 pixels."""
    images = [dict(id=i, file_name=f'{i}.png', height=64, width=96) for i in range(num_images)]
    objects = []
    for i in range(num_images):
        for label, (x, y) in enumerate(((8 + i, 10), (50, 20 + i))):
            box = [x, y, 24, 24]
            outline = [x, y, x + 24, y, x + 24, y + 24, x, y + 24]
            objects.append(
                dict(id=len(objects) + 1, image_id=i, category_id=label + 1, bbox=box,
                     area=576, iscrowd=0, segmentation=[outline]))
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    return dict(images=images, annotations=objects, categories=categories)


def write(folder, change=lambda content: None):
    """Data in folder/data/coco, its training annotations changed; returns the config."""
    data = folder / 'data/coco'
    (data / 'annotations').mkdir(parents=True)
    content = annotations()
    for split in ('train2017', 'val2017'):
        (data / split).mkdir()
        for image in content['images']:
            pixels = np.full((64, 96, 3), 60, np.uint8)
            for thing in content['annotations']:
                if thing['image_id'] == image['id']:
                    x, y, w, h = thing['bbox']
                    pixels[y:y + h, x:x + w, thing['category_id']] = 200
            cv2.imwrite(str(data / split / image['file_name']), pixels)
        split_content = copy.deepcopy(content)
        if split == 'train2017':
            change(split_content)
        (data / f'annotations/instances_{split}.json').write_text(json.dumps(split_content))
    config = folder / 'detector.py'
    config.write_text(DETECTOR)
    return config
