"""What is measured, and the tables of docs/benchmarks.md that show it."""
from typing import NamedTuple, Tuple

BACKBONES = ('ResT-Small', 'ResT-Small, compiled', 'ResT-Small, published', 'ResT-Lite',
             'ResT-Base', 'PVT-T', 'PVTv2-B1', 'Swin-T', 'R-18', 'R-50')
SMALL_IMAGES = tuple(name for name in BACKBONES if name != 'ResT-Small, compiled')
TRAINED = tuple(name for name in SMALL_IMAGES if name not in ('ResT-Base', 'PVTv2-B1'))
EXPORTS = tuple(name + how for name in ('ResT-Small', 'R-18', 'R-50')
                for how in ('', ', onnxruntime'))
FEW = ('ResT-Small', 'Swin-T', 'R-18', 'R-50')
MASK, RETINA = (tuple(f'{detector} {backbone}' for backbone in ('ResT-Small', 'R-18', 'R-50'))
                for detector in ('Mask R-CNN', 'RetinaNet'))
ON_A_GPU = ('ResT-Small', 'ResT-Small, compiled', 'ResT-Small, published',
            'ResT-Small, published, compiled', 'PVT-T', 'Swin-T', 'R-18', 'R-50')


class Column(NamedTuple):
    """What models do by turns: a mode of benchmarks/measure.py, with what, and how often."""
    mode: str
    batch: int
    height: int
    width: int
    turns: int
    models: Tuple[str, ...]  # ratios are to the first
    precision: str = 'float32'


class Table(NamedTuple):
    columns: Tuple[Column, ...]
    models: Tuple[str, ...]  # its rows


def both(turns, batch, height, width, models, precision='float32'):
    """Inference and training, each with its number of turns."""
    size = (batch, height, width)
    return Table((Column('inference', *size, turns[0], models, precision),
                  Column('training', *size, turns[1], models, precision)), models)


BACKBONE = Table((Column('inference', 1, 800, 1344, 3, BACKBONES + EXPORTS[1::2]),
                  Column('training', 1, 800, 1344, 2, TRAINED)), BACKBONES)
CPU = dict(
    backbone=BACKBONE,
    export=Table(BACKBONE.columns[:1], EXPORTS),
    mask_rcnn=both((2, 1), 1, 800, 1344, MASK),
    retinanet=both((2, 1), 1, 800, 1344, RETINA),
    small_images=both((3, 3), 4, 224, 224, SMALL_IMAGES),
    growth=Table(tuple(Column('inference', 1, side, side, turns, FEW)
                       for side, turns in ((512, 3), (1024, 2), (2048, 1))), FEW),
    bfloat16=both((3, 2), 1, 800, 1344, FEW, 'bfloat16'))
GPU = dict(gpu=Table((*both((3, 3), 8, 800, 1344, ON_A_GPU, 'bfloat16').columns,
                      *both((3, 3), 256, 224, 224, ON_A_GPU, 'bfloat16').columns), ON_A_GPU))
PLAN = dict(cpu=CPU, gpu=GPU)  # by the name of the file of results


def columns(name):
    """Each column of the tables of a file of results once, in their order."""
    every = (column for table in PLAN[name].values() for column in table.columns)
    return list(dict.fromkeys(every))
