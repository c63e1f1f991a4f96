"""Tiny data sets of random pictures, without a fault, and configs of small models for them."""
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
CLASSES = ['cat', 'dog']


def draw(path, seed, shape=(64, 96)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*shape, 3), np.uint8)
    assert cv2.imwrite(str(path), pixels)


def exif(orientation):
    """What Pillow writes for a photograph that is to be turned."""
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def coco(num_images=4, names=CLASSES, shape=(64, 96), ending='png'):
    """One object of each of the first two classes on every image of ``shape``."""
    images = [dict(id=i, file_name=f'{i}.{ending}', height=shape[0], width=shape[1])
              for i in range(num_images)]
    annotations = [
        dict(id=2 * i + label + 1, image_id=i, category_id=label + 1, bbox=[x, 10, 24, 30],
             area=720, iscrowd=0,
             segmentation=[[x, 10, x + 24, 10, x + 24, 40, x, 40]])
        for i in range(num_images) for label, x in enumerate((8, 50))]
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(names)]
    return dict(images=images, annotations=annotations, categories=categories)


def write_coco(folder, seed=0, change=lambda content: None):
    """Write folder/images and folder/labels.json, and ``change`` what is in the file."""
    _write_coco(coco(), folder / 'images', folder / 'labels.json', seed, change)
    return folder


def write_coco2017(folder, change=lambda content: None, **kwargs):
    """Write both splits where the configs look for COCO; ``change`` the training's file."""
    for split, do in (('train2017', change), ('val2017', lambda content: None)):
        path = folder / f'data/coco/annotations/instances_{split}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_coco(coco(**kwargs), folder / 'data/coco' / split, path, 0, do)


def _write_coco(content, images, path, seed, change):
    for image in content['images']:
        draw(images / image['file_name'], seed + image['id'], (image['height'], image['width']))
    change(content)
    path.write_text(json.dumps(content))


def write_classes(folder, seed=0, names=CLASSES, each=4, shape=(64, 96)):
    """Write a folder of pictures for each class."""
    for i in range(each * len(names)):
        draw(folder / names[i % len(names)] / f'{i}.png', seed + i, shape)
    return folder


def write_segments(folder, seed=0):
    """Write folder/images, folder/maps with a rectangle of dogs, and folder/classes.txt."""
    (folder / 'maps').mkdir(parents=True)
    for i in range(4):
        draw(folder / f'images/{i}.jpg', seed + i)
        values = np.zeros((64, 96), np.uint8)
        values[20:40, 20:60] = 1
        values[:4] = 255
        cv2.imwrite(str(folder / f'maps/{i}.png'), values)
    (folder / 'classes.txt').write_text('cat\ndog\n')
    return folder


def voc_xml(things, filename='', size=None):
    """Pascal VOC's XML of (class, xmin, ymin, xmax, ymax)."""
    objects = ''.join(
        f'<object><name>{name}</name><bndbox>' + ''.join(
            f'<{side}>{value}</{side}>' for side, value in zip(
                ('xmin', 'ymin', 'xmax', 'ymax'), corners)) + '</bndbox></object>'
        for name, *corners in things)
    size = f'<size><width>{size[0]}</width><height>{size[1]}</height></size>' if size else ''
    return f'<annotation><filename>{filename}</filename>{size}{objects}</annotation>'


def write_voc(folder):
    """Two photographs to train, one to validate and one to test, with VOC's lists."""
    for name in ('Annotations', 'ImageSets/Main'):
        (folder / name).mkdir(parents=True)
    for i, part in enumerate(('train', 'train', 'val', 'test')):
        draw(folder / f'JPEGImages/{i}.jpg', i)
        (folder / f'Annotations/{i}.xml').write_text(voc_xml(
            [('cat', 8, 10, 32, 40), ('dog', 50, 10, 74, 40)], f'{i}.jpg', (96, 64)))
        with open(folder / f'ImageSets/Main/{part}.txt', 'a') as file:
            file.write(f'{i}\n')
    return folder


def write_yolo(folder):
    """Three photographs to train and one to validate, of 96 x 64 pixels, and data.yaml."""
    for i, part in enumerate(('train', 'train', 'train', 'val')):
        draw(folder / f'images/{part}/{i}.png', i)
        labels = folder / f'labels/{part}/{i}.txt'
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text('0 0.25 0.5 0.25 0.5\n1 0.5 0.25 0.75 0.25 0.75 0.75\n')
    (folder / 'data.yaml').write_text(
        'train: images/train\nval: images/val\nnames: [cat, dog]\n')
    return folder


def shape(label, points, kind='polygon', group=None):
    """A shape of LabelMe."""
    return dict(label=label, points=points, shape_type=kind, group_id=group, flags={})


def labelme_json(shapes, **others):
    return json.dumps(dict(version='5.5.0', flags={}, shapes=shapes, imagePath=None,
                           imageData=None, imageWidth=96, imageHeight=64) | others)


def write_labelme(folder):
    """Four photographs of 96 x 64 pixels, with a JSON file beside each."""
    for i in range(4):
        draw(folder / f'{i}.png', i)
        (folder / f'{i}.json').write_text(labelme_json(
            [shape('cat', [[8.5, 10], [32, 10], [20, 40.25]]),
             shape('dog', [[50, 10], [74, 40]], 'rectangle')], imagePath=f'{i}.png'))
    return folder


WRITE = dict(boxes=write_coco, masks=write_coco, classes=write_classes, segments=write_segments)

# A ResT of two stages; DropPath draws random numbers in every block but the first.
ARCH = dict(embed_dims=(8, 16), depths=(1, 2), num_heads=(1, 2), sr_ratios=(2, 1))
EPOCHS = 8
CLASSIFIER = f'''
_base_ = {str(ROOT / 'configs/_base_/runtime/mmpretrain.py')!r}
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResT', arch={ARCH}, out_indices=(1, ), drop_path_rate=0.3),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=16, topk=(1, ),
              loss=dict(type='CrossEntropyLoss')))
data_preprocessor = dict(mean=[127.] * 3, std=[64.] * 3, num_classes=2)
dataset = dict(
    type='CustomDataset', data_root='images', with_label=True,
    serialize_data=False, pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackInputs')])
loader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dataset)
train_dataloader = dict(loader, sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(loader, sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1, ))
train_cfg = dict(by_epoch=True, max_epochs={EPOCHS}, val_interval=2)
val_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
param_scheduler = dict(type='CosineAnnealingLR', T_max={EPOCHS})
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(max_keep_ckpts=2, save_best='auto'))
randomness = dict(seed=0)
'''


def write_classifier(folder):
    """Write 20 images of 2 classes, and the config of a classifier; returns the config."""
    write_classes(folder / 'images', each=10, shape=(32, 32))
    config = folder / 'classifier.py'
    config.write_text(CLASSIFIER)
    return config


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
loader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(metainfo=metainfo, serialize_data=False))
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
train_cfg = dict(max_epochs=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1))
randomness = dict(seed=0)
'''
# Of its pipelines, which a config can only replace as a whole.
DETECTOR_OPTIONS = ['train_dataloader.dataset.pipeline.2.scales=[(96,64),(96,80)]',
                    'val_dataloader.dataset.pipeline.1.scale=(96,64)']


def write_detector(folder, change=lambda content: None):
    """Write 6 images in place of COCO, and the config of a Mask R-CNN; returns the config."""
    write_coco2017(folder, change, num_images=6)
    config = folder / 'detector.py'
    config.write_text(DETECTOR)
    return config


# Our config for digits of each package, and what makes its model small.
DIGITS = dict(
    mmpretrain=('classification/rest_lite_digits.py', dict(head=dict(in_channels=16))),
    mmdet=('retinanet/rest_lite_retinanet_digits.py',
           dict(neck=dict(in_channels=[16, 16, 16]),
                test_cfg=dict(score_thr=0., max_per_img=20))),
    mmseg=('semantic_fpn/rest_lite_semantic_fpn_digits.py',
           dict(neck=dict(in_channels=[8, 16, 16, 16]))))
DIGITS_BACKBONE = dict(
    arch=dict(_delete_=True, embed_dims=(8, 16, 16, 16), depths=(1, 1, 1, 1),
              num_heads=(1, 1, 1, 1), sr_ratios=(8, 4, 2, 1)),
    init_cfg=None, drop_path_rate=0.3)
DIGITS_SETTINGS = '''
load_from = None
train_cfg = dict(max_iters=3, val_interval=3)
default_hooks = dict(logger=dict(interval=1))
one_process = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(one_process, batch_size=2)
val_dataloader = one_process
test_dataloader = one_process
'''


def write_digits(folder):
    """Write folder/data/digits by our script, and a config named after each package."""
    script = ROOT / 'tools/dataset_converters/digits_to_coco.py'
    subprocess.run([sys.executable, script, 'data/digits', '--num-train', '4', '--num-val', '2',
                    '--renders', '1'], cwd=folder, check=True)
    for package, (base, model) in DIGITS.items():
        model = dict(model, backbone=DIGITS_BACKBONE)
        (folder / f'{package}.py').write_text(
            f'_base_ = {str(ROOT / "configs" / base)!r}\nmodel = {model}{DIGITS_SETTINGS}')
