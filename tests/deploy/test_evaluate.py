"""Metrics of exported models on a config's data: what mm's own runner says."""
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from pycocotools import mask as mask_utils
from torch.testing import assert_close

from mmrest.apis import image_pipeline
from mmrest.deploy.evaluate import OnnxPredictor, Validation
from mmrest.deploy.export import resolve
from mmrest.errors import UserError

from ..tiny_data import draw
from .models import build, config

SHAPE = (60, 80)


class InPyTorch(OnnxPredictor):
    """What is exported, before it is."""

    def __init__(self, model):
        _, self.network, _ = resolve(model, False)
        self.activation, self.mask_threshold = map(
            self.network.metadata.get, ('activation', 'mask_threshold'))

    def run(self, images):
        with torch.no_grad():
            outputs = self.network(torch.from_numpy(images))
        outputs = outputs if isinstance(outputs, tuple) else (outputs, )
        return {name: x.numpy() for name, x in zip(self.network.names, outputs)}


def as_boxes(cfg, predictions):
    """COCO's annotations: every third box of those that are surest."""
    folder = cfg.val_dataloader.dataset.data_root
    truth = dict(images=[], annotations=[],
                 categories=[dict(id=i + 1, name=str(i)) for i in range(10)])
    for i, sample in enumerate(predictions):
        truth['images'].append(dict(id=7 * i, file_name=f'{i}.png', height=60, width=80))
        found = sample.pred_instances[:12:3]
        for box, label, mask in zip(found.bboxes, found.labels, found.masks):
            x1, y1, x2, y2 = box.tolist()
            segment = mask_utils.encode(np.asfortranarray(mask.numpy()))
            segment['counts'] = segment['counts'].decode()
            truth['annotations'].append(dict(
                id=len(truth['annotations']) + 1, image_id=7 * i, category_id=int(label) + 1,
                bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1), iscrowd=0,
                segmentation=segment))
    (folder / 'truth.json').write_text(json.dumps(truth))
    cfg.val_dataloader.dataset.update(ann_file='truth.json', data_prefix=dict(img='images'))
    del cfg.val_dataloader.dataset.pipeline[1]  # annotations
    cfg.val_evaluator.ann_file = str(folder / 'truth.json')


def as_classes(cfg, predictions):
    """A folder for each class: that of every second picture is wrong."""
    folder = cfg.val_dataloader.dataset.data_root
    for i in range(10):
        (folder / f'cls/{i}').mkdir(parents=True)
    for i, sample in enumerate(predictions):
        label = (int(sample.pred_label) + i % 2) % 10
        shutil.copy(folder / f'images/{i}.png', folder / f'cls/{label}/{i}.png')
    cfg.val_dataloader.dataset.data_prefix = 'cls'


def as_maps(cfg, predictions):
    """Maps of the classes: the left quarter is wrong."""
    folder = cfg.val_dataloader.dataset.data_root
    (folder / 'maps').mkdir()
    for i, sample in enumerate(predictions):
        labels = sample.pred_sem_seg.data[0].numpy().astype(np.uint8)
        labels[:, :20] = (labels[:, :20] + 1) % 11
        cv2.imwrite(str(folder / f'maps/{i}.png'), labels)
    cfg.val_dataloader.dataset.update(
        img_suffix='.png', data_prefix=dict(img_path='images', seg_map_path='maps'))


@pytest.fixture
def made(tmp_path):
    """A function that makes a config whose data are what its model finds, nearly."""

    def make(family, write):
        cfg, model = config(family), build(family)
        cfg.val_dataloader.dataset.data_root = tmp_path
        cfg.val_dataloader.update(num_workers=0, persistent_workers=False, batch_size=1)
        predictions = []
        for i in range(6):
            path = tmp_path / f'images/{i}.png'
            draw(path, i, SHAPE)
            data = image_pipeline(cfg)(dict(img_path=str(path), img_id=i))
            predictions += model.test_step(pseudo_collate([data]))
        write(cfg, predictions)
        cfg.val_dataloader.dataset.data_root = str(tmp_path)
        return cfg, model

    return make


def mm(cfg, model, folder):
    runner = Runner(
        model=model, work_dir=str(folder / 'work'), test_dataloader=cfg.val_dataloader,
        test_evaluator=cfg.val_evaluator, test_cfg=dict(), default_scope=cfg.default_scope)
    return runner.test()


@pytest.mark.parametrize('family, write, names, scale', [
    ('mask_rcnn', as_boxes, ('coco/bbox_mAP', 'coco/segm_mAP'), 1),
    ('classifier', as_classes, ('accuracy/top1', ), 100),
    ('semantic_fpn', as_maps, ('mIoU', ), 100)])
def test_mms_own_figures(made, tmp_path, family, write, names, scale):
    cfg, model = made(family, write)
    found = Validation(cfg)(InPyTorch(model))
    assert tuple(found) == names
    wanted = mm(cfg, model, tmp_path)
    for name in names:
        assert 0.1 < found[name] < 0.99
        assert found[name] == pytest.approx(wanted[name] / scale, abs=1e-9)


def test_ap_of_some_pictures_is_theirs_alone(made, tmp_path):
    cfg, model = made('mask_rcnn', as_boxes)
    validation = Validation(cfg, limit=2)
    assert validation.indices == [0, 3]
    found = validation(InPyTorch(model))
    path = tmp_path / 'truth.json'
    truth = json.loads(path.read_text())
    truth['images'] = truth['images'][::3]
    truth['annotations'] = [x for x in truth['annotations'] if x['image_id'] in (0, 21)]
    path.write_text(json.dumps(truth))
    wanted = mm(cfg, model, tmp_path)
    assert found == {name: wanted[name] for name in ('coco/bbox_mAP', 'coco/segm_mAP')}


def test_a_class_map_has_the_size_of_the_original(made):
    cfg, model = made('semantic_fpn', as_maps)
    predictor = InPyTorch(model)
    predictor.run = lambda images: dict(labels=np.array([[[1, 2, 3], [4, 5, 6]]]))
    data = pseudo_collate([Validation(cfg).dataset[0]])
    sample, = predictor.test_step(data)
    labels = sample.pred_sem_seg.data
    assert labels.shape == (1, *SHAPE)
    assert_close(labels[0, ::30, 0], torch.tensor([1, 4]))
    assert_close(labels[0, 0, [0, 26, 27, 52, 53]], torch.tensor([1, 1, 2, 2, 3]))


def test_data_that_is_missing_is_one_sentence(made, tmp_path):
    cfg, _ = made('classifier', as_classes)
    with pytest.raises(UserError, match='^limit=0 must be 1 or more'):
        Validation(cfg, 0)
    shutil.rmtree(tmp_path / 'cls')
    with pytest.raises(FileNotFoundError, match='cls'):
        Validation(cfg)
    cfg.val_evaluator = None
    with pytest.raises(UserError, match='^the config has no val_evaluator'):
        Validation(cfg)
