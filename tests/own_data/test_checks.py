"""Each fault in the data is found, and named with its level, file, id and what to do."""
import json
import os
import signal

import cv2
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Dataset

from mmrest.own_data import contents, read
from mmrest.own_data.load import Sample, load_samples

from .. import tiny_data


def found(task, train, val=None):
    """The findings of one split, or of both, as text."""
    return [str(finding) for split in read(task, train, val) for finding in split.findings]


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


THING = 'annotation 1 (annotations[0], 0.png): '
COCO = {
    'no objects': (copy_last('categories', id=3, name='bird'), 'W', 'bird: no objects of'),
    'no category': (first(category_id=9), 'E', THING + "'category_id' is none of"),
    'no image': (first(image_id=9), 'E', "annotation 1 (annotations[0]): 'image_id' is none"),
    'missing image': (first('images', file_name='x.png'), 'E', 'x.png: not found in '),
    'other size': (first('images', width=95), 'E', "0.png (is 96x64): the image has other "),
    'outside': (first(bbox=[96, 5, 9, 9]), 'W', THING + "'bbox' is outside of the image"),
    'left of it': (first(bbox=[-9, 5, 9, 9]), 'W', THING + "'bbox' is outside of the im"),
    'partly': (first(bbox=[90, 5, 9, 9]), 'W', THING + "'bbox' is partly outside"),
    'inverted': (first(bbox=[50, 5, -9, 9]), 'W', THING + "'bbox' is inverted"),
    'empty': (first(bbox=[5, 5, 0, 9]), 'W', THING + "'bbox' is empty"),
    'area 0': (first(area=0), 'W', THING + "'bbox' is empty"),
    'ignore': (first(ignore=1), 'W', THING + "'ignore' is 1; MMDetection leaves"),
    'ignore as text': (first(ignore='0'), 'E', THING + "'ignore' must be 0 or 1, without"),
    'words': (first(bbox=['a', 1, 2, 3]), 'E', THING + "'bbox' is not x, y, width, hei"),
    'three': (first(bbox=[1, 2, 3]), 'E', THING + "'bbox' is not x, y, width, height"),
    'nan': (first(bbox=[float('nan')] * 4), 'E', THING + "'bbox' is not x, y, width"),
    'area': (first(area=None), 'E', THING + "'area' is not a number"),
    'crowd': (lambda c: [t.update(iscrowd=1) for t in c['annotations'][::2]], 'W',
              'cat: only crowd regions'),
    'crowd as text': (first(iscrowd='0'), 'E', THING + "'iscrowd' must be 0 or 1, without"),
    'annotation ids': (first(id=2), 'E', 'id 2: several annotations have it'),
    'image ids': (copy_last('images', file_name='0.png'), 'E', 'id 3: several images have it'),
    'category ids': (copy_last('categories', name='bird'), 'E', 'id 2: several categories'),
    'names twice': (copy_last('categories', id=3), 'E', 'dog: names of several categories'),
    'numbers as names': (first('categories', name=3), 'E',
                         "category 1 (categories[0]): 'name' must be a text"),
    'id 0': (first(id=0), 'W', "0: is the id of an annotation: pycocotools treats id 0 as '"),
    'string': (first('images', id='0'), 'E',
               "image 0 (images[0], 0.png): 'id' must be a whole number"),
    'string of image': (first(image_id='0'), 'E',
                        "annotation 1 (annotations[0]): 'image_id' must be a whole"),
    'size 0': (first('images', height=0), 'E', "image 0 (images[0], 0.png): 'height' must"),
    'no bbox': (without('annotations', 'bbox'), 'E', THING + "no 'bbox', which MMDet"),
    'no id': (without('annotations', 'id'), 'E', "annotations[0], 0.png: no 'id', which MMDet"),
    'no crowd': (without('annotations', 'iscrowd'), 'E', THING + "no 'iscrowd', "),
    'no height': (without('images', 'height'), 'E', "image 0 (images[0], 0.png): no 'height'"),
    'null': (lambda c: c['annotations'].append(None), 'E', 'annotations[8]: must be an obje'),
    'no images': (lambda c: c.update(images=[]), 'E', "'images': missing, or nothing in it"),
    'no part': (lambda c: c.pop('categories'), 'E', "'categories': missing, or nothing in it"),
    'two boxes': (copy_last('annotations', id=9, bbox=[51, 10, 24, 30]), 'W',
                  'annotation 9 (annotations[8], 3.png): two boxes of one class on one object'),
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
    assert ', annotation 5 (annotations[4], 2.png) and 3 more: ' in finding


def lengths(height, width):
    return dict(size=[height, width], counts=[height * width // 2] * 2)


MASKS = {
    'none': ([], 'E', "no 'segmentation', which masks need: outline these objects, or train"),
    'two points': ([[8, 10, 32, 40]], 'E', "'segmentation' must be outlines of three corners"),
    'odd': ([[8, 10, 32, 10, 32, 40, 8]], 'E', "'segmentation' must be outlines of three c"),
    'nan': ([[8, 10, float('nan'), 10, 32, 40]], 'E', "'segmentation' must be outlines of "),
    'other size': (lengths(128, 192), 'E', 'the size of its run lengths is not that of the'),
    'fractions': ([[.1, .2, .3, .2, .3, .5]], 'W', 'no pixel of the image is within its out'),
    'elsewhere': ([[60, 10, 84, 10, 84, 40]], 'W', "its 'bbox' is not around its outline"),
}


@pytest.mark.parametrize('name', MASKS)
@pytest.mark.parametrize('crowd', [0, 1])
def test_masks(name, crowd, tmp_path):
    outline, level, words = MASKS[name]
    tiny_data.write_coco(tmp_path, change=first(segmentation=outline, iscrowd=crowd))
    findings = found('masks', tmp_path)
    if crowd and name == 'elsewhere':
        assert findings == []
        return
    finding, = findings
    assert finding.startswith(f'{level} {tmp_path}/labels.json: {THING}{words}'), finding
    assert found('boxes', tmp_path) == []


def test_masks_that_are_all_empty(tmp_path):
    tiny_data.write_coco(tmp_path, change=every(segmentation=[[.1, .2, .3, .2, .3, .5]]))
    finding, = found('masks', tmp_path)
    assert finding.startswith('E ') and 'no pixel of the image is within its' in finding


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
    (copy_last('categories', id=3, name='bird'), ['W: bird: classes that ']),
    (swapped, ['E: dog, cat: mm numbers the classes in the order of the file']),
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
    expected = ['E train: dog/1.png: cannot be read whole',
                'W train: cat/0.gif: left out: MMPretrain reads',
                'W train: bird: classes without images',
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
               ['E 0.png: the other images end in .jpg',
                'W 0.png: maps without an image that ends in .jpg']),
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
    for task, words in (('boxes', 'no such file or folder'), ('classes', 'no such file')):
        with pytest.raises(FileNotFoundError, match=words):
            read(task, tmp_path / 'none')
    with pytest.raises(FileNotFoundError, match='has 0 JSON files'):
        read('boxes', tmp_path)
    with pytest.raises(FileNotFoundError, match='must have two folders, images and one of PNG'):
        read('segments', tmp_path)


def test_a_sample_that_ends_its_process(tmp_path):
    """It is a finding with its name; what comes after it is loaded."""

    class Deadly(Dataset):

        def __len__(self):
            return 9

        def __getitem__(self, i):
            if i == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return Sample(size=(i, i))

    samples = list(load_samples(Deadly(), workers=2))
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
    finding, = found('boxes', tmp_path)
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
    tiny_data.write_coco(tmp_path, change=every(bbox=[.1, .2, .3, .4], area=.12))
    assert any(f.startswith('E ') and 'nothing: mm has nothing here to train on' in f
               for f in found('boxes', tmp_path))


def test_two_images_of_one_file_and_similar_names(tmp_path):
    def change(content):
        content['images'].append(dict(content['images'][0], id=9))
        content['annotations'][0]['image_id'] = 9
        content['categories'].append(dict(id=3, name='D og'))

    tiny_data.write_coco(tmp_path, change=change)
    text = '\n'.join(found('boxes', tmp_path))
    assert "W " in text and "'dog' and 'D og': two classes, though" in text
    assert '0.png (ids 0, 9): one file for several images' in text
    assert '0.png = 0.png: the same picture under several names' in text


@pytest.mark.parametrize('content, words', [
    ('{"categories": [{"name": "dog\xe9"}]}'.encode('latin-1'), 'not in UTF-8 (byte 30)'),
    (b'\xef\xbb\xbf{}', 'begins with a byte order mark, at which pycocotools stops'),
    (b'[' * 10**5, 'no JSON: ')])
def test_encodings_of_json(content, words, tmp_path):
    (tmp_path / 'labels.json').write_bytes(content)
    assert words in found('boxes', tmp_path)[0]


@pytest.mark.parametrize('content, words', [
    (b'cat\n\ndog\n', 'line 2: empty lines of classes.txt'),
    (b'cat\ncat\n', 'cat: several lines of classes.txt'), (b'', 'no name of a class in it'),
    (b'\xff\xfe', 'not in UTF-8'),
    (b''.join(b'%d\n' % i for i in range(256)), '255: more than 255 names in classes.txt')])
def test_classes_txt(content, words, tmp_path):
    (tiny_data.write_segments(tmp_path) / 'classes.txt').write_bytes(content)
    finding, = found('segments', tmp_path)
    assert finding.startswith('E ') and words in finding


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tiny_data.write_segments(tmp_path) / 'classes.txt').write_bytes(b'\xef\xbb\xbfcat\r\ndog')
    split, = read('segments', tmp_path)
    assert split.classes == ['cat', 'dog'] and split.findings == []


def test_pixels_are_those_of_mm(tmp_path):
    """16 bits of which little is left, EXIF that OpenCV does not follow, and hidden files."""
    tiny_data.write_classes(tmp_path)
    cv2.imwrite(str(tmp_path / 'cat/0.png'), np.full((64, 96), 4000, np.uint16))
    (tmp_path / 'cat/._2.png').write_bytes(b'no image')
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (96, 64), (9, 200, 9)).save(tmp_path / 'dog/9.png', exif=exif)
    (tmp_path / 'dog/linked').symlink_to(tmp_path / 'cat')
    split, = read('classes', tmp_path)
    turned, dark, same = map(str, split.findings)
    assert 'cat/0.png, dog/linked/0.png: nearly black: mm takes the upper 8' in dark
    height, width = cv2.imread(str(tmp_path / 'dog/9.png')).shape[:2]
    assert split.sizes['dog/9.png'] == (width, height)
    assert 'dog/9.png: EXIF' in turned and 'cat/2.png = dog/linked/2.png' in same
    assert split.counts == dict(cat=4, dog=9)


def test_a_hidden_folder_is_no_class(tmp_path):
    (tiny_data.write_classes(tmp_path) / '.ipynb_checkpoints').mkdir()
    finding, = found('classes', tmp_path)
    assert finding.startswith('E ') and '.ipynb_checkpoints: hidden folders' in finding


def test_maps_of_16_bits(tmp_path):
    tiny_data.write_segments(tmp_path)
    values = np.zeros((64, 96), np.uint16)
    values[9] = 256
    cv2.imwrite(str(tmp_path / 'maps/0.png'), values)
    finding = found('segments', tmp_path)[0]
    assert finding.startswith('E ') and '0.png: values up to 256: mm keeps the las' in finding


def test_what_is_not_loaded_is_not_counted(tmp_path):
    """No number, and no warning that follows from it, is said of files with an error."""
    train = tiny_data.write_coco(tmp_path / 'a', change=first('categories', name='d\ud83d'))
    val = tiny_data.write_coco(tmp_path / 'b', 100, copy_last('images', id=9, file_name='x'))
    splits = read('boxes', train, val)
    assert contents(splits).splitlines()[1].split() == ['images', '-', '4']
    assert [f.level for split in splits for f in split.findings] == ['E', 'E']
    assert "'name' must be a text that UTF-8 can write" in str(splits[0].findings[0])


def test_maps_without_an_image(tmp_path):
    (tiny_data.write_segments(tmp_path) / 'images/2.jpg').unlink()
    finding, = found('segments', tmp_path)
    assert finding.startswith('W ') and '2.png: maps without an image that ends in' in finding
