"""Files in COCO's results format, as they are read."""
import json

import pytest
from mmengine.config import Config

from mmrest.coco_results import CocoResults
from mmrest.errors import UserError
from mmrest.report.predictions import read_found

ROW = dict(image_id=3, category_id=9, score=0.5)
BOX = dict(ROW, bbox=[1., 2., 3., 6.])
MASK = dict(ROW, segmentation=dict(size=[9, 9], counts='a1'))


@pytest.fixture
def read(tmp_path):
    """Writes files, and reads those that are named."""
    def read(names, **files):
        for name, rows in files.items():
            text = rows if isinstance(rows, str) else json.dumps(rows)
            (tmp_path / f'{name.replace("_", ".")}.json').write_text(text)
        return read_found([tmp_path / f'{name}.json' for name in names.split()])
    return read


def test_what_infer_writes_is_read(tmp_path):
    """Boxes bring the masks beside them, which have no boxes."""
    (tmp_path / 'coco.json').write_text(json.dumps(dict(
        images=[dict(id=3, file_name='x.jpg')], categories=[dict(id=9, name='cat')])))
    coco = CocoResults(Config(dict(test_dataloader=dict(dataset=dict(
        ann_file=str(tmp_path / 'coco.json'))))), ['cat'], ['x.jpg'])
    coco.add('x.jpg', dict(labels=[0], scores=[0.5], bboxes=[[1., 2., 4., 8.]],
                           masks=[MASK['segmentation']]))
    boxes, masks = coco.write(tmp_path / 't.bbox.json')
    wanted = dict(bbox=[BOX], segm=[MASK])
    assert read_found([boxes]) == read_found([masks, boxes]) == wanted
    with pytest.raises(UserError, match='t.segm.json has masks without boxes'):
        read_found([masks])


def test_masks_with_boxes_give_both(read):
    """As mm writes them."""
    both = {**BOX, **MASK}
    assert read('m', m=[both]) == dict(bbox=[both], segm=[both])
    assert read('t.bbox', t_bbox=[BOX, BOX], t_segm=[both]) == dict(
        bbox=[BOX, BOX], segm=[both])
    assert read('e.segm', e_segm=[]) == dict(bbox=[], segm=[])


@pytest.mark.parametrize('rows, words', [
    ('no', "a.json is not in COCO's results format, a list in JSON: "),
    (dict(annotations=[]), 'a.json must be a list of objects'),
    ([BOX, 5], r'a.json\[1\] must be an object with image_id, '),
    ([BOX, dict(image_id=1)], r"a.json\[1\] has no 'category_id'"),
    ([BOX, dict(BOX, image_id='3')], r"a.json\[1\]: 'image_id' must be a whole number"),
    ([dict(BOX, score=float('nan'))], r"a.json\[0\]: 'score' is not a number"),
    ([BOX, ROW], r"a.json\[1\] has no 'bbox'"),
    ([BOX, MASK], r"a.json\[0\] has no 'segmentation'"),
    ([dict(BOX, bbox=[1, 2, 3])], r"a.json\[0\]: 'bbox' is not x, y, width, height"),
    ([MASK, dict(MASK, bbox=[1, 2, 3])], r"a.json\[1\]: 'bbox' is not x, y, width, height"),
    ([dict(ROW, segmentation=[[1, 2, 3, 4, 5, 6]])],
     r"a.json\[0\]: 'segmentation' must be run lengths"),
    ([dict(ROW, segmentation=dict(size=[9, 9], counts=[3, 'x']))],
     r"a.json\[0\]: 'segmentation' must be run lengths"),
])
def test_wrong_results_are_named(read, rows, words):
    with pytest.raises(UserError, match=words):
        read('a', a=rows)


@pytest.mark.parametrize('row, what', [(BOX, 'boxes'), (MASK, 'masks')])
def test_two_lists_of_a_kind_are_refused(read, row, what):
    with pytest.raises(UserError, match=f'two files have {what}, .*a.json and .*b.json: '):
        read('a b', a=[row], b=[row])
