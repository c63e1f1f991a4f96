"""Tiny data sets of cats and dogs for every task, without a fault."""
import json

import cv2
import numpy as np

CLASSES = ['cat', 'dog']


def draw(path, seed, shape=(64, 96)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*shape, 3), np.uint8)
    assert cv2.imwrite(str(path), pixels)


def coco(num_images=4):
    """One object of each class on every image of 64 x 96 pixels."""
    images = [dict(id=i, file_name=f'{i}.png', height=64, width=96) for i in range(num_images)]
    annotations = [
        dict(id=2 * i + label + 1, image_id=i, category_id=label + 1, bbox=[x, 10, 24, 30],
             area=720, iscrowd=0,
             segmentation=[[x, 10, x + 24, 10, x + 24, 40, x, 40]])
        for i in range(num_images) for label, x in enumerate((8, 50))]
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    return dict(images=images, annotations=annotations, categories=categories)


def write_coco(folder, seed=0, change=lambda content: None):
    content = coco()
    for image in content['images']:
        draw(folder / 'images' / image['file_name'], seed + image['id'])
    change(content)
    (folder / 'labels.json').write_text(json.dumps(content))
    return folder


def write_classes(folder, seed=0):
    for i in range(8):
        draw(folder / CLASSES[i % 2] / f'{i}.png', seed + i)
    return folder


def write_segments(folder, seed=0):
    (folder / 'maps').mkdir(parents=True)
    for i in range(4):
        draw(folder / f'images/{i}.jpg', seed + i)
        values = np.zeros((64, 96), np.uint8)
        values[20:40, 20:60] = 1
        values[:4] = 255
        cv2.imwrite(str(folder / f'maps/{i}.png'), values)
    (folder / 'classes.txt').write_text('cat\ndog\n')
    return folder


WRITE = dict(boxes=write_coco, masks=write_coco, classes=write_classes, segments=write_segments)
