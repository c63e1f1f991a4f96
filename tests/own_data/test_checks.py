"""Each fault in the data is found, and named with its level, file, id and what to do."""
import json

import cv2
import numpy as np
import pytest
from mmrest.own_data.split import Split
from PIL import Image

from mmrest.own_data import compare, contents, read

from .. import tiny_data

SUBSET = dict(boxes=True, masks=True, classes=False, segments=False)


def found(task, train, val=None):
    """The findings of one split, or of both, as text."""
    splits = [read(task, path) for path in (train, val) if path]
    if val:
        compare(*splits, subset=SUBSET[task])
    return [str(finding) for split in splits for finding in split.findings]


@pytest.mark.parametrize('task', tiny_data.WRITE)
def test_data_without_faults(task, tmp_path):
    train, val = (tiny_data.WRITE[task](tmp_path / name, seed)
                  for name, seed in (('train', 0), ('val', 100)))
    assert found(task, train, val) == []
    split = read(task, train)
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


COCO = {
    'no objects': (copy_last('categories', id=3, name='bird'), 'W', 'bird: no objects of'),
    'no category': (first(category_id=9), 'E', "annotation 1: 'category_id' is none of"),
    'no image': (first(image_id=9), 'E', "annotation 1: 'image_id' is none of the images"),
    'missing image': (first('images', file_name='x.png'), 'E', 'x.png: not found in '),
    'other size': (first('images', width=95), 'E', "0.png (is 96x64): the image has other "),
    'outside': (first(bbox=[96, 5, 9, 9]), 'W', "annotation 1: 'bbox' is outside of the image"),
    'left of it': (first(bbox=[-9, 5, 9, 9]), 'W', "annotation 1: 'bbox' is outside of the im"),
    'partly': (first(bbox=[90, 5, 9, 9]), 'W', "annotation 1: 'bbox' is partly outside"),
    'inverted': (first(bbox=[50, 5, -9, 9]), 'W', "annotation 1: 'bbox' is inverted"),
    'empty': (first(bbox=[5, 5, 0, 9]), 'W', "annotation 1: 'bbox' is empty"),
    'area 0': (first(area=0), 'W', "annotation 1: 'bbox' is empty"),
    'words': (first(bbox=['a', 1, 2, 3]), 'E', "annotation 1: 'bbox' is not x, y, width, hei"),
    'three': (first(bbox=[1, 2, 3]), 'E', "annotation 1: 'bbox' is not x, y, width, height"),
    'nan': (first(bbox=[float('nan')] * 4), 'E', "annotation 1: 'bbox' is not x, y, width"),
    'area': (first(area=None), 'E', "annotation 1: 'area' is not a number"),
    'crowd': (every(iscrowd=1), 'W', 'cat, dog: only crowd regions'),
    'annotation ids': (first(id=2), 'E', 'id 2: several annotations have it'),
    'image ids': (copy_last('images', file_name='0.png'), 'E', 'id 3: several images have it'),
    'category ids': (copy_last('categories', name='bird'), 'E', 'id 2: several categories'),
    'names twice': (copy_last('categories', id=3), 'E', 'dog: names of several categories'),
    'id 0': (first(id=0), 'W', '0: is the id of an annotation, and pycocotools'),
    'string': (first('images', id='0'), 'E', "images[0]: 'id' must be a whole number"),
    'string of image': (first(image_id='0'), 'E', "annotations[0]: 'image_id' must be a whole"),
    'no bbox': (without('annotations', 'bbox'), 'E', "annotations[0]: no 'bbox', which MMDet"),
    'no crowd': (without('annotations', 'iscrowd'), 'E', "annotations[0]: no 'iscrowd', "),
    'no height': (without('images', 'height'), 'E', "images[0]: no 'height', which MMD"),
    'no images': (lambda c: c.update(images=[]), 'E', "'images': missing, or nothing in it"),
    'no part': (lambda c: c.pop('categories'), 'E', "'categories': missing, or nothing in it"),
}


@pytest.mark.parametrize('name', COCO)
def test_coco_files(name, tmp_path):
    change, level, words = COCO[name]
    tiny_data.write_coco(tmp_path, change=change)
    finding, = found('boxes', tmp_path)
    assert finding.startswith(f'{level} {tmp_path}/labels.json: {words}'), finding


def test_names_of_many_are_shortened(tmp_path):
    tiny_data.write_coco(tmp_path, change=every(bbox=[5, 5, 0, 9]))
    finding = found('boxes', tmp_path)[0]
    assert ', annotation 4, annotation 5 and 3 more: ' in finding


def test_masks_need_segmentations_and_boxes_do_not(tmp_path):
    tiny_data.write_coco(tmp_path, change=first(segmentation=[]))
    finding, = found('masks', tmp_path)
    assert finding.startswith('E ') and "annotation 1: no 'segmentation'" in finding
    assert 'train boxes with --task boxes' in finding
    assert found('boxes', tmp_path) == []


@pytest.mark.parametrize('content, words', [
    ('', '0 characters: no JSON'), ('{"images": [', '12 characters: no JSON'),
    ('[]', 'list: must be an object of images, annotations, categories')])
def test_files_that_are_no_coco(content, words, tmp_path):
    (tmp_path / 'labels.json').write_text(content)
    finding, = found('boxes', tmp_path)
    assert finding.startswith(f'E {tmp_path}/labels.json: {words}')


def test_absolute_paths(tmp_path):
    path = str(tmp_path / 'images/0.png')
    tiny_data.write_coco(tmp_path, change=first('images', file_name=path))
    finding, = found('boxes', tmp_path)
    assert finding.startswith('W ') and f'{path}: absolute paths' in finding


@pytest.mark.parametrize('damage', [
    lambda path: path.write_bytes(b''), lambda path: path.write_bytes(b'no image'),
    lambda path: path.write_bytes(path.read_bytes()[:900])])
def test_unreadable_images(damage, tmp_path):
    tiny_data.write_coco(tmp_path)
    damage(tmp_path / 'images/2.png')
    finding, = found('boxes', tmp_path)
    assert finding.startswith('E ') and '2.png: cannot be read whole (' in finding


@pytest.mark.parametrize('size, level, words', [
    ((96, 64), 'W', 'EXIF says that the image is rotated or mirrored, and mm turns it upright'),
    ((64, 96), 'E', 'those before EXIF turns the image upright')])
def test_rotated_images(size, level, words, tmp_path):
    """The JSON has the size of the upright image, as mm reads it, or that of the file."""
    tiny_data.write_coco(tmp_path, change=first('images', file_name='0.jpg', width=size[0],
                                                height=size[1]))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (64, 96), (9, 9, 9)).save(tmp_path / 'images/0.jpg', exif=exif)
    assert cv2.imread(str(tmp_path / 'images/0.jpg')).shape == (64, 96, 3)
    findings = found('boxes', tmp_path)
    assert any(f[0] == level and ': 0.jpg: ' in f and words in f for f in findings), findings
    assert {f[0] for f in findings} == {'W', level}


def names(*new):
    return lambda content: [category.update(name=name)
                            for category, name in zip(content['categories'], new)]


def swapped(content):
    content['categories'].reverse()


@pytest.mark.parametrize('change, expected', [
    (names('Cat', 'dog'), ["E: 'Cat': ", "writes 'cat': rename one"]),
    (names('cat', ' dog'), ["E: ' dog': ", "writes 'dog': rename one"]),
    (names('cat', 'bird'), ['W: bird: classes that ', 'E: dog: classes of ']),
    (copy_last('categories', id=3, name='bird'), ['W: bird: classes that ', 'W: bird: no obj']),
    (swapped, ['E: dog, cat: MMDetection numbers the classes in the order of the file']),
])
def test_classes_of_both_splits(change, expected, tmp_path):
    train = tiny_data.write_coco(tmp_path / 'train')
    val = tiny_data.write_coco(tmp_path / 'val', 100, change)
    findings = '\n'.join(found('boxes', train, val)).replace(f' {val}/labels.json', '')
    assert all(words in findings for words in expected), findings
    assert findings.count('\n') + 1 == len([e for e in expected if e[:2] in ('E:', 'W:')])


@pytest.mark.parametrize('task', tiny_data.WRITE)
def test_a_training_image_among_those_for_validation(task, tmp_path):
    """By its pixels: the file has another name and format."""
    train, val = (tiny_data.WRITE[task](tmp_path / name, seed)
                  for name, seed in (('train', 0), ('val', 100)))
    image = cv2.imread(str(next(train.rglob('1.*g'))))
    target = next(val.rglob('2.*g'))
    cv2.imwrite(str(target), image)
    if task == 'segments':  # a JPEG is not the same once it is saved again
        target.write_bytes((train / 'images/1.jpg').read_bytes())
    finding, = found(task, train, val)
    assert finding.startswith('W ') and f'{target.name}: the same pictures' in finding


def test_folders_of_classes(tmp_path):
    train, val = (tiny_data.write_classes(tmp_path / name, seed)
                  for name, seed in (('train', 0), ('val', 100)))
    (train / 'bird').mkdir()
    (train / 'cat/0.gif').touch()
    (train / 'dog/1.png').write_bytes(b'')
    (val / 'cat').rename(val / 'CAT')
    expected = ['W train: cat/0.gif: left out: MMPretrain reads',
                'W train: bird: classes without images',
                'E train: dog/1.png: cannot be read whole',
                "E val: 'CAT': ", 'E val: bird: classes of']
    findings = [f.replace(f'{tmp_path}/', '') for f in found('classes', train, val)]
    assert [f[:len(e)] for f, e in zip(findings, expected)] == expected
    assert len(findings) == len(expected)
    (tmp_path / 'none').mkdir()
    assert 'one folder for each class is needed' in ''.join(found('classes', tmp_path / 'none'))


def value(at, to):
    def change(folder):
        values = cv2.imread(str(folder / 'maps/0.png'), cv2.IMREAD_UNCHANGED)
        values[at] = to
        cv2.imwrite(str(folder / 'maps/0.png'), values)
    return change


def from_one(folder):
    for path in (folder / 'maps').iterdir():
        values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), values + (values < 255))


MAPS = {
    'beyond': (value((9, 9), 7), ['E 0.png: values [7]: classes.txt has 2 names, so']),
    'from one': (from_one, ['E 0.png, 1.png, 2.png, 3.png: values [2]: ',
                            'W smallest value 1: no pixel is of the first class, 0',
                            'W cat: no pixels of these classes']),
    'missing': (lambda folder: (folder / 'maps/0.png').unlink(), ['E 0.png: not found in ']),
    'colours': (lambda folder: tiny_data.draw(folder / 'maps/0.png', 0),
                ['E 0.png: a picture in ']),
    'size': (lambda folder: cv2.imwrite(str(folder / 'maps/0.png'), np.zeros((9, 9), np.uint8)),
             ['E 0.png: another size than the image']),
    'ending': (lambda folder: (folder / 'images/0.jpg').rename(folder / 'images/0.png'),
               ['E 0.png: the other images end in .jpg']),
    'class': (lambda folder: (folder / 'classes.txt').write_text('cat\ndog\nbird\n'),
              ['W bird: no pixels of these classes']),
}


@pytest.mark.parametrize('name', MAPS)
def test_maps(name, tmp_path):
    change, expected = MAPS[name]
    change(tiny_data.write_segments(tmp_path))
    findings = [f.replace(f' {tmp_path}:', '') for f in found('segments', tmp_path)]
    assert [f[:len(e)] for f, e in zip(findings, expected)] == expected
    assert len(findings) == len(expected)


def test_what_is_in_the_data(tmp_path):
    """The table of contents, cell by cell."""
    tiny_data.write_coco(tmp_path, change=lambda content: content['annotations'].pop())
    split = read('boxes', tmp_path)
    table = contents(split, Split(tmp_path, tmp_path))
    rows = [line.rsplit(maxsplit=2) for line in table.splitlines()]
    assert rows == [['training', 'validation'], ['images', '4', '0'],
                    ['images without objects', '0', '0'], ['cat', '4', '0'], ['dog', '3', '0']]


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
        split = read('boxes', tmp_path / json_file)
        assert split.findings == [] and (split.images / name).is_file()


def test_what_is_no_data(tmp_path):
    for task, words in (('boxes', 'no such file or folder'), ('classes', 'no such file')):
        with pytest.raises(FileNotFoundError, match=words):
            read(task, tmp_path / 'none')
    with pytest.raises(FileNotFoundError, match='has 0 JSON files'):
        read('boxes', tmp_path)
    with pytest.raises(FileNotFoundError, match='must have two folders, images and one of PNG'):
        read('segments', tmp_path)
