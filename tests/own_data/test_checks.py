"""Each fault in the data is found, and named with its level, file, id and what to do."""
import json
import os
import shutil
import signal

import cv2
import numpy as np
import pytest
from PIL import Image

from mmrest.own_data import contents, read
from mmrest.own_data.load import Sample, load_samples

from .. import tiny_data


def found(task, train, val=None):
    """The findings as text: of one split without its path, of two with that in their folder."""
    return [str(finding).replace(f'{train.parent}/', '') if val else
            str(finding).replace(f' {split.path}:', '').replace(f'{train}/', '')
            for split in read(task, train, val) for finding in split.findings]


def check(findings, *expected):
    """Each finding begins as expected."""
    assert [f[:len(e)] for f, e in zip(findings, expected)] == list(expected), findings
    assert len(findings) == len(expected), findings


@pytest.mark.parametrize('task', tiny_data.WRITE)
def test_data_without_faults(task, tmp_path):
    train, val = (tiny_data.WRITE[task](tmp_path / name, seed)
                  for name, seed in (('train', 0), ('val', 100)))
    assert found(task, train, val) == []
    split, = read(task, train)
    assert split.classes == tiny_data.CLASSES
    assert len(split.sizes) == (8 if task == 'classes' else 4)
    assert set(split.sizes.values()) == {(96, 64)}
    dog = dict(boxes=4, masks=4, classes=4, segments=4 * 20 * 40)[task]
    assert split.counts['dog'] == dog
    assert split.counts['cat'] == (4 * (60 * 96 - 800) if task == 'segments' else 4)


def first(part='annotations', **fields):
    return lambda content: content[part][0].update(fields)


def every(**fields):
    return lambda content: [thing.update(fields) for thing in content['annotations']]


def without(part, field):
    return lambda content: content[part][0].pop(field)


def copy_last(part, **fields):
    return lambda content: content[part].append(dict(content[part][-1], **fields))


def two_of_all(content):
    copy_last('categories', id=3, name='D og')(content)
    content['images'].append(dict(content['images'][0], id=9))
    content['annotations'][0]['image_id'] = 9


THING = 'annotation 1 (annotations[0], 0.png): '
COCO = {
    'no objects': (copy_last('categories', id=3, name='bird'), 'W bird: no objects of'),
    'no category': (first(category_id=9), f"E {THING}'category_id' is none of"),
    'no image': (first(image_id=9), "E annotation 1 (annotations[0]): 'image_id' is none"),
    'missing image': (first('images', file_name='x.png'), 'E x.png: not found in '),
    'other size': (first('images', width=95), "E 0.png (is 96x64): the image has other "),
    'outside': (first(bbox=[96, 5, 9, 9]), f"W {THING}'bbox' is outside of the image"),
    'left of it': (first(bbox=[-9, 5, 9, 9]), f"W {THING}'bbox' is outside of the im"),
    'partly': (first(bbox=[90, 5, 9, 9]), f"W {THING}'bbox' is partly outside"),
    'inverted': (first(bbox=[50, 5, -9, 9]), f"W {THING}'bbox' is inverted"),
    'empty': (first(bbox=[5, 5, 0, 9]), f"W {THING}'bbox' is empty"),
    'area 0': (first(area=0), f"W {THING}'bbox' is empty"),
    'ignore': (first(ignore=1), f"W {THING}'ignore' is 1; MMDetection leaves"),
    'ignore as text': (first(ignore='0'), f"E {THING}'ignore' must be 0 or 1, without"),
    'words': (first(bbox=['a', 1, 2, 3]), f"E {THING}'bbox' is not x, y, width, hei"),
    'three': (first(bbox=[1, 2, 3]), f"E {THING}'bbox' is not x, y, width, height"),
    'nan': (first(bbox=[float('nan')] * 4), f"E {THING}'bbox' is not x, y, width"),
    'area': (first(area=None), f"E {THING}'area' is not a number"),
    'crowd': (lambda c: [t.update(iscrowd=1) for t in c['annotations'][::2]],
              'W cat: only crowd regions'),
    'crowd as text': (first(iscrowd='0'), f"E {THING}'iscrowd' must be 0 or 1, without"),
    'annotation ids': (first(id=2), 'E id 2: several annotations have it'),
    'image ids': (copy_last('images', file_name='0.png'), 'E id 3: several images have it'),
    'category ids': (copy_last('categories', name='bird'), 'E id 2: several categories'),
    'names twice': (copy_last('categories', id=3), 'E dog: names of several categories'),
    'number as name': (first('categories', name=3), "E category 1 (categories[0]): 'name' mu"),
    'id 0': (first(id=0), "W 0: is the id of an annotation: pycocotools treats id 0 as '"),
    'text as id': (first('images', id='0'), "E image 0 (images[0], 0.png): 'id' must be a"),
    'image as text': (first(image_id='0'), "E annotation 1 (annotations[0]): 'image_id' must"),
    'size 0': (first('images', height=0), "E image 0 (images[0], 0.png): 'height' must"),
    'no bbox': (without('annotations', 'bbox'), f"E {THING}no 'bbox', which MMDet"),
    'no id': (without('annotations', 'id'), "E annotations[0], 0.png: no 'id', which MMDet"),
    'no crowd': (without('annotations', 'iscrowd'), f"E {THING}no 'iscrowd', "),
    'no height': (without('images', 'height'), "E image 0 (images[0], 0.png): no 'height'"),
    'null': (lambda c: c['annotations'].append(None), 'E annotations[8]: must be an obje'),
    'no images': (lambda c: c.update(images=[]), "E 'images': missing, or nothing in it"),
    'no part': (lambda c: c.pop('categories'), "E 'categories': missing, or nothing in it"),
    'two boxes': (copy_last('annotations', id=9, bbox=[51, 10, 24, 30]),
                  'W annotation 9 (annotations[8], 3.png): two boxes of one class on one'),
    'two of all': (two_of_all, "W 'dog' and 'D og': two classes, though their names look",
                   'W 0.png (ids 0, 9): one file for several images', 'W D og: no objects of',
                   'W 0.png = 0.png: the same picture under several names'),
}


@pytest.mark.parametrize('name', COCO)
def test_coco_files(name, tmp_path):
    change, *expected = COCO[name]
    tiny_data.write_coco(tmp_path, change=change)
    check(found('boxes', tmp_path), *expected)


def lengths(height, width):
    return dict(size=[height, width], counts=[height * width // 2] * 2)


MASKS = {
    'none': ([], "E no 'segmentation', which masks need: outline these objects, or train"),
    'two points': ([[8, 10, 32, 40]], "E 'segmentation' must be outlines of three corners"),
    'odd': ([[8, 10, 32, 10, 32, 40, 8]], "E 'segmentation' must be outlines of three c"),
    'nan': ([[8, 10, float('nan'), 10, 32, 40]], "E 'segmentation' must be outlines of "),
    'other size': (lengths(128, 192), 'E the size of its run lengths is not that of the'),
    'fractions': ([[.1, .2, .3, .2, .3, .5]], 'W no pixel of the image is within its out'),
    'elsewhere': ([[60, 10, 84, 10, 84, 40]], "W its 'bbox' is not around its outline"),
    'right half': (lengths(64, 96), "W its 'bbox' is not around its outline"),
}


@pytest.mark.parametrize('name', MASKS)
@pytest.mark.parametrize('crowd', [0, 1])
def test_masks(name, crowd, tmp_path):
    outline, words = MASKS[name]
    tiny_data.write_coco(tmp_path, change=first(segmentation=outline, iscrowd=crowd))
    unseen = crowd and 'not around' in words
    check(found('masks', tmp_path), *[] if unseen else [f'{words[:2]}{THING}{words[2:]}'])
    assert found('boxes', tmp_path) == []


def test_masks_that_are_all_empty(tmp_path):
    tiny_data.write_coco(tmp_path, change=every(segmentation=[[.1, .2, .3, .2, .3, .5]]))
    finding, = found('masks', tmp_path)
    assert finding.startswith('E ') and 'no pixel of the image is within its' in finding


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def labels(content):
    return 'boxes', put('labels.json', content)


def classes_txt(content):
    return 'segments', put('classes.txt', content)


def map_0(values):
    return 'segments', lambda folder: cv2.imwrite(str(folder / 'maps/0.png'), values)


def from_one(folder):
    for path in (folder / 'maps').iterdir():
        values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), values + (values < 255))


def absolute(folder):
    tiny_data.write_coco(folder, change=first('images', file_name=f'{folder}/images/0.png'))


def turned(width, height):
    """A photograph of 64 x 96 pixels that EXIF turns, and the size of it in the JSON."""
    def write(folder):
        tiny_data.write_coco(folder, change=first('images', file_name='0.jpg', width=width,
                                                  height=height))
        Image.new('RGB', (64, 96), (9, 9, 9)).save(
            folder / 'images/0.jpg', exif=tiny_data.exif(6))
    return 'boxes', write


TURNED = 'W 0.jpg: EXIF says that the image is rotated or mirrored, and mm turns it upright'
FILES = {
    'empty': (*labels(b''), 'E 0 characters: no JSON'),
    'cut': (*labels(b'{"images": ['), 'E 12 characters: no JSON'),
    'deep': (*labels(b'[' * 10**5), 'E 100000 characters: no JSON: '),
    'list': (*labels(b'[]'), 'E list: must be an object of images, annotations, categories'),
    'Latin-1': (*labels(b'{"categories": [{"name": "dog\xe9"}]}'),
                'E labels.json: not in UTF-8 (byte 30)'),
    'byte order mark': (*labels(b'\xef\xbb\xbf{}'), 'E labels.json: begins with a byte order'),
    'empty image': ('boxes', put('images/2.png', b''), 'E 2.png: cannot be read whole ('),
    'no image': ('boxes', put('images/2.png', b'no'), 'E 2.png: cannot be read whole ('),
    'cut image': ('boxes', lambda folder: os.truncate(folder / 'images/2.png', 900),
                  'E 2.png: cannot be read whole ('),
    'absolute path': ('boxes', absolute, 'W images/0.png: absolute paths'),
    'turned': (*turned(96, 64), TURNED),
    'size before it is turned': (
        *turned(64, 96), TURNED, "E 0.jpg: 'width' and 'height' (and the boxes?) are those "
        'before EXIF turns the image upright', "W annotation 2 (annotations[1], 0.jpg): 'bbox' "
        'is partly outside'),
    'hidden folder': ('classes', lambda folder: (folder / '.ipynb_checkpoints').mkdir(),
                      'E .ipynb_checkpoints: hidden folders'),
    'no classes': ('classes', lambda folder: [shutil.rmtree(path) for path in folder.iterdir()],
                   'E no folder: one folder for each class is needed'),
    'empty line': (*classes_txt(b'cat\n\ndog\n'), 'E line 2: empty lines of classes.txt'),
    'name twice': (*classes_txt(b'cat\ncat\n'), 'E cat: several lines of classes.txt'),
    'no name': (*classes_txt(b''), 'E classes.txt: no name of a class in it'),
    'UTF-16': (*classes_txt(b'\xff\xfe'), 'E classes.txt: not in UTF-8'),
    'many names': (*classes_txt(b''.join(b'%d\n' % i for i in range(256))),
                   'E 255: more than 255 names in classes.txt'),
    'one more name': (*classes_txt(b'cat\ndog\nbird\n'), 'W bird: no pixels of these'),
    'value 7': (*map_0(np.uint8([[7] * 96] * 64)), 'E 0.png: values [7]: classes.txt has 2'),
    'from one': ('segments', from_one, 'E 0.png, 1.png, 2.png, 3.png: values [2]: ',
                 'W smallest value 1: no pixel is of the first class, 0',
                 'W cat: no pixels of these classes'),
    'no map': ('segments', lambda folder: (folder / 'maps/0.png').unlink(),
               'E 0.png: not found in maps'),
    'map in colours': (*map_0(np.zeros((64, 96, 3), np.uint8)), 'E 0.png: a picture in '),
    'map size': (*map_0(np.zeros((9, 9), np.uint8)), 'E 0.png: another size than the image'),
    '16 bits': (*map_0(np.full((64, 96), 256, np.uint16)), 'E 0.png: values up to 256: mm k'),
    'no image of a map': ('segments', lambda folder: (folder / 'images/2.jpg').unlink(),
                          'W 2.png: maps without an image that ends in'),
    'other ending': (
        'segments', lambda folder: (folder / 'images/0.jpg').rename(folder / 'images/0.png'),
        'E 0.png: the other images end in .jpg',
        'W 0.png: maps without an image that ends in .jpg'),
}


@pytest.mark.parametrize('name', FILES)
def test_other_files(name, tmp_path):
    task, change, *expected = FILES[name]
    change(tiny_data.WRITE[task](tmp_path / 'pets'))
    check(found(task, tmp_path / 'pets'), *expected)


def names(*new):
    return lambda content: [category.update(name=name)
                            for category, name in zip(content['categories'], new)]


@pytest.mark.parametrize('change, expected', [
    (names('Cat', 'dog'), ["E val/labels.json: 'Cat': train/labels.json writes 'cat': rename"]),
    (names('cat', ' dog'), ["E val/labels.json: ' dog': train/labels.json writes 'dog': ren"]),
    (names('cat', 'bird'), ['W val/labels.json: bird: classes that train/labels.json does not',
                            'E val/labels.json: dog: classes of train/labels.json that are']),
    (copy_last('categories', id=3, name='bird'), ['W val/labels.json: bird: classes that ']),
    (lambda content: content['categories'].reverse(),
     ['E val/labels.json: dog, cat: mm numbers the classes in the order of the file']),
])
def test_classes_of_both_splits(change, expected, tmp_path):
    train = tiny_data.write_coco(tmp_path / 'train')
    val = tiny_data.write_coco(tmp_path / 'val', 100, change)
    check(found('boxes', train, val), *expected)


@pytest.mark.parametrize('task', tiny_data.WRITE)
def test_a_training_image_among_those_for_validation(task, tmp_path):
    """By its pixels: the file has another name and format."""
    train, val = (tiny_data.WRITE[task](tmp_path / name, seed)
                  for name, seed in (('train', 0), ('val', 100)))
    image = cv2.imread(str(next(train.rglob('1.*g'))))
    target = next(val.rglob('2.*g'))
    target.write_bytes(cv2.imencode('.bmp', image)[1].tobytes())
    finding, = found(task, train, val)
    assert finding.startswith('W ') and f'{target.name}: the same pictures' in finding


def test_folders_of_classes(tmp_path):
    train, val = (tiny_data.write_classes(tmp_path / name, seed)
                  for name, seed in (('train', 0), ('val', 100)))
    (train / 'bird').mkdir()
    (train / 'cat/0.gif').touch()
    (train / 'dog/1.png').write_bytes(b'')
    (val / 'cat').rename(val / 'CAT')
    check(found('classes', train, val), 'E train: dog/1.png: cannot be read whole',
          'W train: cat/0.gif: left out: MMPretrain reads',
          'W train: bird: classes without images', "E val: 'CAT': ", 'E val: bird: classes of')


def test_what_is_in_the_data(tmp_path):
    """The table of contents, cell by cell."""
    train = tiny_data.write_coco(tmp_path / 'a', 0, lambda c: c['annotations'].pop())
    table = contents(read('boxes', train, tiny_data.write_coco(tmp_path / 'b', 100)))
    rows = [line.rsplit(maxsplit=2) for line in table.splitlines()]
    assert rows == [['training', 'validation'], ['images', '4', '4'],
                    ['images without objects', '0', '0'], ['cat', '4', '4'], ['dog', '3', '4']]


def test_places_of_the_images(tmp_path):
    """Beside the file, in images/, or in COCO's place; file_name may name the folder."""
    content = tiny_data.coco(1)
    for json_file, image, name in (
            ('a/x.json', 'a/images/0.png', '0.png'), ('b/x.json', 'b/0.png', '0.png'),
            ('c/x.json', 'c/images/0.png', 'images/0.png'),
            ('d/annotations/instances_train.json', 'd/train/0.png', '0.png')):
        tiny_data.draw(tmp_path / image, 0)
        content['images'][0]['file_name'] = name
        (tmp_path / json_file).parent.mkdir(exist_ok=True)
        (tmp_path / json_file).write_text(json.dumps(content))
        split, = read('boxes', tmp_path / json_file)
        assert split.findings == [] and (split.images / name).is_file()


def test_what_is_no_data(tmp_path):
    for task, name, words in (
            ('boxes', 'none', 'no such file or folder'), ('classes', 'none', 'no such file'),
            ('boxes', '', 'has no JSON file: .*to_coco.py makes one'),
            ('segments', '', 'must have two folders, images and one of PNG')):
        with pytest.raises(FileNotFoundError, match=words):
            read(task, tmp_path / name)


def test_a_sample_that_ends_its_process(tmp_path):
    """It is a finding with its name; what comes after it is loaded."""

    class Deadly(list):

        def __getitem__(self, i):
            if i == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return Sample(size=(i, i))

    samples = list(load_samples(Deadly(range(9)), workers=2))
    assert [sample.size[0] for sample in samples] == [0, 1, 2, 0, 4, 5, 6, 7, 8]
    assert 'ends the process that loads it' in samples[3].error
    assert [bool(sample.error) for sample in samples].count(True) == 1


def test_an_error_of_mm_is_a_finding(tmp_path, monkeypatch):
    """Also one of a version of mm that nobody has seen, and an object that it drops."""
    from mmdet.datasets import CocoDataset
    tiny_data.write_coco(tmp_path)
    parse = CocoDataset.parse_data_info

    def drops(self, info):
        info['raw_ann_info'] = [a for a in info['raw_ann_info'] if a['id'] != 3]
        return parse(self, info)

    monkeypatch.setattr(CocoDataset, 'parse_data_info', drops)
    split, = read('boxes', tmp_path)
    assert split.counts == dict(cat=3, dog=4)
    finding, = map(str, split.findings)
    assert 'annotation 3 (annotations[2], 1.png): MMDetection leaves such objects' in finding

    def fails(self):
        raise KeyError('nothing')

    monkeypatch.setattr(CocoDataset, 'load_data_list', fails)
    finding, = map(str, read('boxes', tmp_path)[0].findings)
    assert finding == f"E {tmp_path}/labels.json: KeyError: mmdet cannot read it: 'nothing'"


def test_images_that_the_training_leaves_out(tmp_path):
    """Small ones with a warning; those without objects are counted, and kept on request."""
    def change(content):
        content['images'][0].update(height=20)
        content['annotations'] = content['annotations'][2:-2]  # none on the first and last

    tiny_data.write_coco(tmp_path, change=change)
    tiny_data.draw(tmp_path / 'images/0.png', 0, (20, 96))
    for keep_empty, sizes, left_out in ((False, 2, 1), (True, 3, 0)):
        train, val = read('boxes', tmp_path, tmp_path, keep_empty=keep_empty)
        assert (len(train.sizes), train.empty, train.left_out) == (sizes, sizes - 2, left_out)
        assert (len(val.sizes), val.empty, val.left_out) == (4, 2, 0)
        assert train.counts == val.counts == dict(cat=2, dog=2)
        assert '0.png: less than 32 pixels wide or high' in str(train.findings[0])


def test_nothing_to_learn(tmp_path):
    tiny_data.write_coco(tmp_path, change=every(bbox=[5, 5, 0, 9]))
    empty, *_, last = found('boxes', tmp_path)
    assert ', annotation 5 (annotations[4], 2.png) and 3 more: ' in empty
    assert last.startswith('E nothing: mm has nothing here to train on')


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tiny_data.write_segments(tmp_path) / 'classes.txt').write_bytes(b'\xef\xbb\xbfcat\r\ndog')
    split, = read('segments', tmp_path)
    assert split.classes == ['cat', 'dog'] and split.findings == []


def test_pixels_are_those_of_mm(tmp_path):
    """16 bits of which little is left, EXIF that OpenCV does not follow, and hidden files."""
    tiny_data.write_classes(tmp_path)
    cv2.imwrite(str(tmp_path / 'cat/0.png'), np.full((64, 96), 4000, np.uint16))
    (tmp_path / 'cat/._2.png').write_bytes(b'no image')
    Image.new('RGB', (96, 64), (9, 200, 9)).save(
        tmp_path / 'dog/9.png', exif=tiny_data.exif(6))
    (tmp_path / 'dog/linked').symlink_to(tmp_path / 'cat')
    split, = read('classes', tmp_path)
    turned, dark, same = map(str, split.findings)
    assert 'cat/0.png, dog/linked/0.png: nearly black: mm takes the upper 8' in dark
    height, width = cv2.imread(str(tmp_path / 'dog/9.png')).shape[:2]
    assert split.sizes['dog/9.png'] == (width, height)
    assert 'dog/9.png: EXIF' in turned and 'cat/2.png = dog/linked/2.png' in same
    assert split.counts == dict(cat=4, dog=9)


def test_what_is_not_loaded_is_not_counted(tmp_path):
    """No number, and no warning that follows from it, is said of files with an error."""
    train = tiny_data.write_coco(tmp_path / 'a', change=first('categories', name='d\ud83d'))
    val = tiny_data.write_coco(tmp_path / 'b', 100, copy_last('images', id=9, file_name='x'))
    splits = read('boxes', train, val)
    assert contents(splits).splitlines()[1].split() == ['images', '-', '4']
    assert [f.level for split in splits for f in split.findings] == ['E', 'E']
    assert "'name' must be a text that UTF-8 can write" in str(splits[0].findings[0])
