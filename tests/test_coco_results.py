"""Ids of images and classes in COCO's results format."""
import json

import pytest
from mmengine.config import Config

from mmrest.coco_results import CocoResults
from mmrest.errors import UserError

IMAGES = [dict(id=3, file_name='a/x.jpg'), dict(id=4, file_name='b/x.jpg'),
          dict(id=5, file_name='y.jpg')]
FOUND = dict(labels=[1], scores=[0.5], bboxes=[[1., 2., 4., 8.]])


@pytest.fixture
def make(tmp_path):
    """Results for images, with an annotation file of two classes."""
    (tmp_path / 'coco.json').write_text(json.dumps(dict(
        images=IMAGES, categories=[dict(id=9, name='dog'), dict(id=2, name='cat')])))

    def make(*paths, classes=('cat', 'dog'), **dataset):
        dataset = dict(data_root=str(tmp_path), ann_file='coco.json') | dataset
        return CocoResults(Config(dict(test_dataloader=dict(dataset=dataset))), classes, paths)

    return make


def test_ids_and_files(make, tmp_path):
    coco = make('photos/b/x.jpg', '/photos/y.jpg', 'a/x.jpg')
    coco.add('photos/b/x.jpg', FOUND)
    assert coco.write(tmp_path / 'new/found.json') == [tmp_path / 'new/found.json']
    row = dict(image_id=4, category_id=9, score=0.5)
    assert json.loads((tmp_path / 'new/found.json').read_text()) == [
        dict(row, bbox=[1, 2, 3, 6])]
    mask = dict(size=[9, 9], counts='abc')
    coco.add('/photos/y.jpg', dict(FOUND, masks=[mask]))
    for name in ('found', 'found.bbox'):
        assert coco.write(tmp_path / f'{name}.json')[1] == tmp_path / 'found.segm.json'
    assert json.loads((tmp_path / 'found.segm.json').read_text()) == [
        dict(row, image_id=5, segmentation=mask)]


@pytest.mark.parametrize('paths, options, words', [
    (['x.jpg'], {}, 'has no images named x.jpg'),
    (['z/y.png'], {}, 'has no images named z/y.png'),
    (['1/y.jpg', '2/y.jpg'], {}, '1/y.jpg and 2/y.jpg are one image in .*, that of id 5'),
    ([], dict(classes=('cat', 'bird')), 'has no category bird, which the model finds'),
    ([], dict(ann_file='none.json'), 'ann_file=.*none.json. of the config is none'),
    ([], dict(ann_file=None), 'ann_file=None of the config is none'),
])
def test_what_has_no_id(make, paths, options, words):
    with pytest.raises(UserError, match=words):
        make(*paths, **options)
