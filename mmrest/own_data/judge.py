"""Compares what mm loads with what the files say."""
import os
from collections import Counter
from pathlib import Path
from typing import List

from mmengine.config import ConfigDict
from rich.console import Console
from rich.progress import track

from .findings import Split
from .form import IGNORED, READ
from .formats.photos import SUFFIXES, walk
from .load import Sample, Samples, build, load_lists, load_samples
from .objects import judge_objects

LARGE = 10**8  # pixels


def load(split: Split, cfg: ConfigDict, scope: str) -> None:
    """Load all of a split once by the dataset of a config, and add what came to ``split``.

    Args:
        split (Split): Of a right form.
        cfg (ConfigDict): The dataset of a config for it.
        scope (str): 'mmdet', 'mmpretrain' or 'mmseg'.
    """
    try:
        dataset = build(cfg, scope)
        infos, kept = load_lists(dataset)
    except Exception as error:  # mm's reader is the judge, whatever it says
        split.add('E', [type(error).__name__], f'{scope} cannot read it: {error}')
        return
    found = load_samples(Samples(kept, dataset.pipeline.transforms))
    split.loaded = True
    samples = list(track(found, str(split.path), len(kept), console=Console(stderr=True)))
    names = [os.path.relpath(info['img_path'], split.images) for info in kept]
    _judge_images(split, names, samples)
    if scope == 'mmdet':
        judge_objects(split, dataset, infos, kept, samples)
    elif scope == 'mmpretrain':
        _judge_classes(split, names, samples)
    else:
        _judge_maps(split, names, samples)
    if split.usable and not sum(split.counts.values()):
        split.add('E', ['nothing'], 'mm has nothing here to train on, or to evaluate on')


def _judge_images(split: Split, names: List[str], samples: List[Sample]) -> None:
    pairs = list(zip(names, samples))
    split.add('E', (name for name, sample in pairs if sample.missing and not _of_map(sample)),
              f'not found in {split.images}')
    broken = [(name, sample.error) for name, sample in pairs
              if sample.error and not sample.missing and not _of_map(sample)]
    for error in dict.fromkeys(error for _, error in broken):
        split.add('E', (name for name, other in broken if other == error),
                  f'cannot be read whole ({error}): replace the images or leave them out')
    split.add('W', (name for name, sample in pairs if sample.turned), 'EXIF says that the '
              'image is rotated or mirrored, and mm turns it upright: check that it was '
              'annotated upright')
    split.add('W', (name for name, sample in pairs if sample.dark), 'nearly black: mm takes '
              'the upper 8 of more bits, and little is in them: stretch the values')
    split.add('W', (f'{name} ({sample.size[0]}x{sample.size[1]})' for name, sample in pairs
                    if sample.size[0] * sample.size[1] > LARGE), 'large images, which need '
              'much memory and time: tools/dataset_converters/tile_coco.py cuts them')
    for name, sample in pairs:
        if not sample.error:
            split.sizes[name] = sample.size
            split.digests.setdefault(sample.digest, []).append(name)


def _of_map(sample):
    """Whether the error is in the annotations, and not in the image."""
    return sample.step.endswith('Annotations')


def _files_left_out(split, names):
    files = [os.path.relpath(path, split.images) for path in walk(split.images, [''])]
    return sorted(set(files) - set(names))


def _judge_classes(split, names, samples):
    split.add('W', _files_left_out(split, names),
              f'left out: MMPretrain reads {" ".join(READ)}')
    folders = [Path(name).parts[0] for name in names]
    wrong = [name for name, folder, sample in zip(names, folders, samples)
             if not sample.error and split.classes[sample.label] != folder]
    split.add('E', wrong, 'MMPretrain gives it another class than its folder has')
    split.counts = Counter(folders)
    split.add('W', (name for name in split.classes if not split.counts[name]),
              'classes without images, which cannot be learned')


def _judge_maps(split, names, samples):
    others = _files_left_out(split, names)
    split.add('E', (name for name in others if name.lower().endswith(SUFFIXES)),
              f'the other images end in {split.suffix}, and MMSegmentation reads one ending')
    split.add('W', (name for name in others if not name.lower().endswith(SUFFIXES)),
              f'left out: they do not end in {split.suffix}')
    maps = {Path(name).with_suffix('.png').name: sample for name, sample in zip(names, samples)}
    _judge_files_of_maps(split, maps)
    alone = {os.path.relpath(path, split.maps) for path in walk(split.maps, ['.png'])}
    split.add('W', sorted(alone - {str(Path(name).with_suffix('.png')) for name in names}),
              f'maps without an image that ends in {split.suffix}: they are left out')
    pixels = Counter()
    for sample in samples:
        pixels.update(sample.pixels)
    number = len(split.classes)
    beyond = {name: values for name, sample in maps.items()
              if (values := [v for v in sample.pixels if number <= v != IGNORED])}
    split.add('E', beyond, f'values {sorted(set().union(*beyond.values()))[:9]}: classes.txt '
              f'has {number} names, so that 0 to {number - 1} and {IGNORED} (ignored) are '
              'allowed')
    split.counts = Counter({name: pixels[i] for i, name in enumerate(split.classes)
                            if pixels[i] and i != IGNORED})
    first = min(pixels, default=0)
    if 0 < first < IGNORED:
        split.add('W', [f'smallest value {first}'], 'no pixel is of the first class, 0: if the '
                  'maps count from 1, subtract 1 or put a line for 0 on top of classes.txt')
    split.add('W', (name for name in split.classes if not split.counts[name]),
              'no pixels of these classes, so that nothing learns them')


def _judge_files_of_maps(split, maps):
    split.add('E', (name for name, sample in maps.items()
                    if sample.missing and _of_map(sample)), f'not found in {split.maps}')
    split.add('E', (name for name, sample in maps.items()
                    if sample.error and not sample.missing and _of_map(sample)),
              'cannot be read whole: replace the maps, or leave them out with their images')
    for what in dict.fromkeys(sample.map for sample in maps.values() if sample.map):
        split.add('E', (name for name, sample in maps.items() if sample.map == what), what)
