"""COCO data with faults: training continues, or an error names the file and the field."""
import json
import logging

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from . import tiny_coco
from .training import Run

ANNOTATIONS = 'annotations/instances_train2017.json'
CROWD = dict(iscrowd=1, segmentation=dict(counts=[0, 10, 6134], size=[64, 96]))


def dataset(folder, change=lambda content: None):
    """The training set of the config, with its pipeline."""
    from mmdet.registry import DATASETS
    cfg = Config.fromfile(tiny_coco.write(folder, change))
    init_default_scope('mmdet')
    config = cfg.train_dataloader.dataset
    config.data_root = f'{folder}/data/coco/'
    config.pipeline[2].scales = [(96, 64)]
    return DATASETS.build(config)


def first(**fields):
    return lambda content: content['annotations'][0].update(fields)


def every(**fields):
    def change(content):
        for thing in content['annotations']:
            thing.update(fields)
    return change


def without(part, field):
    return lambda content: content[part][0].pop(field)


def no_objects(content):
    content['annotations'] = [a for a in content['annotations'] if a['image_id']]


# Number of images, objects of the first and those of them that are ignored. An image whose
# objects are all dropped stays, to be all background; one without any is filtered.
@pytest.mark.parametrize('change, images, objects, ignored', [
    (first(), 6, 2, 0),
    (first(bbox=[200, 200, 20, 20]), 6, 1, 0),
    (first(bbox=[-10, -10, 40, 40]), 6, 2, 0),
    (first(bbox=[5, 5, 0, 0], area=0), 6, 1, 0),
    (first(bbox=[float('nan')] * 4), 6, 1, 0),
    (first(**CROWD), 6, 2, 1),
    (every(**CROWD), 6, 2, 2),
    (first(category_id=99), 6, 1, 0),
    (first(image_id=77), 6, 1, 0),
    (no_objects, 5, 2, 0),
])
def test_odd_objects(change, images, objects, ignored, tmp_path):
    data = dataset(tmp_path, change)
    found = data.get_data_info(0)['instances']
    assert (len(data), len(found)) == (images, objects)
    assert sum(thing['ignore_flag'] for thing in found) == ignored
    sample = data[0]['data_samples']
    assert len(sample.gt_instances) == objects - ignored
    assert len(sample.ignored_instances) == ignored
    boxes = sample.gt_instances.bboxes.tensor
    assert (boxes >= 0).all() and (boxes[:, 2] <= 96).all() and (boxes[:, 3] <= 64).all()


BROKEN_IMAGES = {
    'missing': lambda path: path.unlink(),
    'empty': lambda path: path.write_bytes(b''),
    'no image': lambda path: path.write_bytes(b'no image'),
    'cut off': lambda path: path.write_bytes(path.read_bytes()[:80]),
}


@pytest.mark.parametrize('kind', BROKEN_IMAGES)
def test_another_image_takes_the_place_of_a_broken_one(kind, tmp_path, caplog):
    data = dataset(tmp_path)
    path = tmp_path / 'data/coco/train2017/0.png'
    BROKEN_IMAGES[kind](path)
    with caplog.at_level(logging.WARNING, logger='mmengine'):
        sample = data[0]['data_samples']
    assert sample.img_path != str(path)
    assert data.pipeline.transforms[0].skipped == {str(path)}
    data.pipeline.transforms[0].at_most = 0
    with pytest.raises(RuntimeError, match=f"img_path='{path}' cannot be read, and at_most=0"):
        data[0]


BROKEN_FILES = {
    'empty': (lambda text: '', '0 characters: no JSON'),
    'cut off': (lambda text: text[:200], '200 characters: no JSON'),
    'list': (lambda text: '[]', 'list: must be an object of images'),
    'object': (lambda text: '{}', "'images', 'annotations', 'categories': missing, or nothing"),
}
BROKEN_FIELDS = {
    'no categories': (lambda c: c.pop('categories'), "'categories': missing, or nothing in it"),
    'other names': (lambda c: [k.update(name=f'x{k["id"]}') for k in c['categories']],
                    'x1, x2: the categories have none of the classes that the config'),
    'other ids': (every(category_id=99), "'category_id' is none of the categories"),
    'bbox': (without('annotations', 'bbox'), "annotations[0]: no 'bbox'"),
    'masks': (first(segmentation=[]), "annotation 1: no 'segmentation'"),
    'the same id': (first(id=2), 'id 2: several annotations have it'),
}


def test_faults_of_annotation_files_are_said(tmp_path, many):
    """By tools/train.py. The sentence follows MMDetection's traceback.

    tests/datasets has all the others.
    """
    names = [*BROKEN_FILES, *BROKEN_FIELDS]
    for name in many(['empty'], names):
        folder = tmp_path / name
        change = BROKEN_FIELDS[name][0] if name in BROKEN_FIELDS else lambda content: None
        config = tiny_coco.write(folder, change)
        path = folder / 'data/coco' / ANNOTATIONS
        sentence = (BROKEN_FIELDS.get(name) or BROKEN_FILES[name])[1]
        if name in BROKEN_FILES:
            path.write_text(BROKEN_FILES[name][0](path.read_text()))
        run = Run(folder, config, '--cfg-options', *tiny_coco.OPTIONS)
        assert run.wait() == 1, name
        last = run.text().strip().splitlines()[-1]
        assert sentence in last and f'data/coco/{ANNOTATIONS}' in last, last


def test_broken_images_do_not_end_a_run(tmp_path, many):
    """Four of them, one of each kind, in 12 epochs of 6 images."""
    if not many(False, True):
        pytest.skip('long version only: --torture')
    config = tiny_coco.write(tmp_path)
    for i, damage in enumerate(BROKEN_IMAGES.values()):
        damage(tmp_path / f'data/coco/train2017/{i}.png')
    options = ('--cfg-options', *tiny_coco.OPTIONS, 'train_cfg.max_epochs=12')
    run = Run(tmp_path, config, '--work-dir', 'out', *options)
    assert run.wait() == 0, run.text()[-3000:]
    assert (tmp_path / 'out/epoch_12.pth').exists()
    for i in range(4):
        assert f"img_path='data/coco/train2017/{i}.png' cannot be read" in run.text()
    run = Run(tmp_path, config, '--work-dir', 'strict', *options,
              'train_dataloader.dataset.pipeline.0.at_most=0')
    assert run.wait() == 1 and 'at_most=0 files may be skipped' in run.text()


def test_a_run_on_odd_objects_stays_finite(tmp_path, many):
    if not many(False, True):
        pytest.skip('long version only: --torture')
    faults = (dict(bbox=[200, 200, 20, 20]), dict(bbox=[-10, -10, 40, 40]),
              dict(bbox=[5, 5, 0, 0], area=0), CROWD, dict(category_id=99),
              dict(bbox=[0, 0, 1e6, 1e6]), dict(bbox=[float('nan')] * 4))

    def change(content):
        for thing, fields in zip(content['annotations'], faults):
            thing.update(fields)

    run = Run(tmp_path, tiny_coco.write(tmp_path, change), '--work-dir', 'out',
              '--cfg-options', *tiny_coco.OPTIONS)
    assert run.wait() == 0, run.text()[-3000:]
    scalars, = (tmp_path / 'out').glob('*/vis_data/scalars.json')
    losses = [json.loads(line).get('loss') for line in scalars.read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert len(losses) == 6 and all(0 < loss < 100 for loss in losses)
