"""COCO JSON of Pascal VOC, YOLO and LabelMe."""
import base64
import json
import math
import os
import shutil

import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from mmrest.errors import UserError
from mmrest.own_data import read
from mmrest.own_data.formats import convert
from mmrest.own_data.formats.photos import read_size

from ..tiny_data import (
    draw,
    exif,
    labelme_json,
    shape,
    voc_xml,
    write_labelme,
    write_voc,
    write_yolo,
)

CAT = ('cat', 10, 10, 30, 40)


@pytest.fixture
def converted(tmp_path):
    """Convert to tmp_path/out: what was written, by part, and the lines in one text."""

    def converted(kind, *sources, out='out', **options):
        lines = convert(kind, sources, tmp_path / out, **options)
        written = {path.stem: json.loads(path.read_text())
                   for path in (tmp_path / out).glob('*.json')}
        return written, '\n'.join(lines)

    return converted


def count(written):
    return {part: len(content['images']) for part, content in written.items()}


@pytest.fixture
def voc(tmp_path, converted):
    """Write a.xml beside a.png (96 x 64); convert; the training's content and the lines."""

    def write(*things, photo='a.png', filename='a.png', size=(96, 64),
              change=lambda text: text, **options):
        draw(tmp_path / photo, 1)
        (tmp_path / 'a.xml').write_text(change(voc_xml(things or [CAT], filename, size)))
        written, said = converted('voc', tmp_path, **options)
        return written['train'], said

    return write


def test_voc_by_its_lists(converted, tmp_path):
    write_voc(tmp_path / 'voc')
    (tmp_path / 'far/away').mkdir(parents=True)
    (tmp_path / 'link').symlink_to('far/away')  # whose '..' leads to its real parent
    written, said = converted('voc', tmp_path / 'voc', out='link/out')
    assert [line.partition('/out/')[2] for line in said.splitlines()] == [
        'train.json: 2 images, 4 objects, 0 crowds', 'val.json: 1 images, 2 objects, 0 crowds',
        'test.json: 1 images, 2 objects, 0 crowds']
    assert written['val'] == dict(
        images=[dict(id=1, file_name='../../../voc/JPEGImages/2.jpg', width=96, height=64)],
        annotations=[
            dict(category_id=1, bbox=[8, 10, 24, 30], area=720, iscrowd=0, id=1, image_id=1),
            dict(category_id=2, bbox=[50, 10, 24, 30], area=720, iscrowd=0, id=2, image_id=1)],
        categories=[dict(id=1, name='cat', supercategory='none'),
                    dict(id=2, name='dog', supercategory='none')])
    assert {path.suffix for path in (tmp_path / 'far').rglob('*.*')} == {'.json'}
    split, = read('boxes', tmp_path / 'link/out/train.json')  # finds the photographs there
    assert split.findings == [] and len(split.sizes) == 2


def test_voc_lists_and_files_that_do_not_agree(converted, tmp_path):
    folder = write_voc(tmp_path / 'voc')
    lists = folder / 'ImageSets/Main'
    (lists / 'train.txt').rename(lists / 'trainval.txt')  # counts without a train.txt
    (lists / 'val.txt').write_text('lost\n')
    (lists / 'cat_test.txt').write_text('3 -1\n')  # of one class: no list of photographs
    written, said = converted('voc', folder)
    assert said.splitlines()[:2] == [
        f'W names in lists that have no XML file (1): {lists}/val.txt',
        f'W files that are in none of the lists, left out (1): {folder}/Annotations/2.xml']
    assert count(written) == dict(train=2, test=1)
    _, said = converted('voc', *sorted(folder.glob('Annotations/*.xml')), out='single')
    assert said == f'{tmp_path}/single/train.json: 4 images, 8 objects, 0 crowds'


@pytest.mark.parametrize('size, kept, words', [
    ((96, 64), [96, 64], None), (None, [96, 64], None),
    ((0, 0), [96, 64], 'size is not two numbers'),
    ((640, 480), [640, 480], "another size than the photograph's"),
])
def test_voc_size_is_compared(size, kept, words, voc):
    content, said = voc(size=size)
    image, = content['images']
    assert [image['width'], image['height']] == kept
    assert words in said and 'a.xml' in said if words else said.count('\n') == 0


def test_voc_size_from_before_exif_is_kept_and_the_check_refuses_it(converted, tmp_path):
    Image.new('RGB', (96, 64)).save(tmp_path / 'a.jpg', exif=exif(6))
    (tmp_path / 'a.xml').write_text(voc_xml([CAT], 'a.jpg', (96, 64)))
    _, said = converted('voc', tmp_path)
    assert 'before EXIF' in said and f'{tmp_path}/a.xml (96x64, not 64x96)\n' in said
    split, = read('boxes', tmp_path / 'out/train.json')
    assert any(f.level == 'E' and 'EXIF' in f.what for f in split.findings)


@pytest.mark.parametrize('photo, filename, taken, said', [
    ('a.png', 'b.png', '../a.png', 'a.xml (names b.png)'),
    ('a.png', 'C:\\photos\\b.png', '../a.png', 'a.xml (names b.png)'),
    ('a.png', 'lost.png', '../a.png', 'a.xml (names lost.png)'), ('a.png', '', '../a.png', ''),
    ('a.png', 'a', '../a.png', ''), ('a.JPG', 'a.tif', '../a.JPG', ''),
    ('photo.png', 'C:\\x\\photo.png', '../photo.png', ''),
    ('images/a.png', 'a.png', None, 'W files without their photograph, left out (1): ')])
def test_voc_takes_the_photograph_of_its_own_name(photo, filename, taken, said, voc, tmp_path):
    draw(tmp_path / 'b.png', 3)
    (tmp_path / 'b.xml').write_text(voc_xml([CAT]))
    content, lines = voc(photo=photo, filename=filename)
    names = sorted(image['file_name'] for image in content['images'])
    assert names == sorted(filter(None, [taken, '../b.png']))
    assert said in lines and lines.count('W ') == bool(said)


def test_voc_annotations_beside_images(converted, tmp_path):
    """As Kaggle has it, with folders in them, a linked one, and hidden files."""
    draw(tmp_path / 'set/images/deep/a.png', 1)
    for name in ('deep/a.xml', 'deep/._a.xml', '.hidden/a.xml'):
        path = tmp_path / 'set/annotations' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(voc_xml([CAT]))
    (tmp_path / 'set/annotations/deep/loop').symlink_to(tmp_path / 'set')
    draw(tmp_path / 'more/a.png', 2)
    (tmp_path / 'more/a.xml').write_text(voc_xml([CAT]))
    (tmp_path / 'set/annotations/more').symlink_to(tmp_path / 'more')
    (tmp_path / 'link').symlink_to(tmp_path / 'set')
    written, said = converted('voc', tmp_path / 'link')
    assert said == f'{tmp_path}/out/train.json: 2 images, 2 objects, 0 crowds'
    content = written['train']
    assert [i['file_name'] for i in content['images']] == [
        '../set/images/deep/a.png', '../more/a.png']
    assert [thing['image_id'] for thing in content['annotations']] == [1, 2]


def test_voc_corners_count_from_0_or_1(voc, tmp_path):
    content, _ = voc(('cat', 1, 1, 96, 64))
    assert content['annotations'][0]['bbox'] == [1, 1, 95, 63]
    shutil.rmtree(tmp_path / 'out')
    content, _ = voc(('cat', 1, 1, 96, 64), from_one=True)
    thing, = content['annotations']
    assert thing['bbox'] == [0, 0, 96, 64] and thing['area'] == 96 * 64  # all of the image
    with pytest.raises(UserError, match='--from-one is for voc'):
        convert('yolo', [tmp_path], tmp_path / 'yolo', from_one=True)


def test_voc_numbers_stay_and_wrong_boxes_too(voc):
    """The check sees them. What is no number has no place in JSON."""
    content, said = voc(
        ('float', '10.123456789012345', 0, '10.623456789012345', 1),
        ('exchanged', 50, 10, 20, 40), ('outside', 200, 10, 240, 40), ('flat', 10, 20, 30, 20),
        ('nan', 'nan', 10, 30, 40),
        ('inf', 1, 1, 'inf', 3), ('words', 'x', 1, 2, 3), ('', 1, 1, 9, 9))
    boxes = {content['categories'][thing['category_id'] - 1]['name']: thing['bbox']
             for thing in content['annotations']}
    assert boxes == dict(float=[10.123456789012345, 0, 0.5, 1], exchanged=[50, 10, -30, 30],
                         outside=[200, 10, 40, 30], flat=[10, 20, 20, 0])
    assert 'four numbers in <bndbox>, left out (4): ' in said and 'a.xml' in said


@pytest.mark.parametrize('text, words', [
    ('<annotation><obj', 'broken XML files'), ('', 'broken XML files'),
    ('<?xml version="1.0" encoding="no-such"?><annotation/>', 'broken XML files'),
    ('<annotations><image id="0"/></annotations>', "not Pascal VOC's"),
    (voc_xml([CAT]), 'photographs that cannot be read')])
def test_voc_what_is_broken_is_named_and_the_others_go_on(text, words, voc, tmp_path):
    (tmp_path / 'b.xml').write_text(text)
    (tmp_path / 'b.png').write_bytes(b'no PNG')
    content, said = voc()
    assert len(content['images']) == 1 and words in said and f'{tmp_path}/b.' in said


@pytest.mark.parametrize('tag, words, crowd', [
    ('<difficult>1</difficult>', 'objects marked difficult: they become crowds, ', 1),
    ('<part><bndbox><xmin>1</xmin></bndbox></part>', 'objects with <part>, of which the', 0),
    ('<polygon><x1>1</x1></polygon>', 'objects with <polygon>, of which the box alone is', 0)])
def test_voc_objects_with_more(tag, words, crowd, voc):
    content, said = voc(CAT, ('cat', 50, 10, 70, 40), change=lambda text: text.replace(
        '<bndbox>', f'{tag}<bndbox>', 1))
    assert [(thing['bbox'], thing['iscrowd']) for thing in content['annotations']] == [
        ([10, 10, 20, 30], crowd), ([50, 10, 20, 30], 0)]
    assert f'W {words}' in said and '(1): ' in said
    assert f'1 images, {2 - crowd} objects, {crowd} crowds' in said


def test_voc_masks(converted, tmp_path):
    """Maps number objects as the file does, with those that are left out; 255 is void."""
    folder = write_voc(tmp_path / 'voc')
    first = folder / 'Annotations/0.xml'
    broken = voc_xml([('nan', 'nan', 1, 2, 3), ('cat', 8, 10, 32, 40), ('dog', 50, 10, 74, 40),
                      ('dog', 1, 1, 2, 2)], size=(96, 64))
    first.write_text(broken)
    values = np.zeros((64, 96), np.uint8)
    values[12:38, 9:30], values[10:20, 50:60], values[0, 0], values[5] = 2, 3, 9, 255
    (folder / 'SegmentationObject').mkdir()
    image = Image.fromarray(values, 'P')
    image.putpalette(np.random.default_rng(0).integers(0, 255, 768).tolist())  # colours differ
    image.save(folder / 'SegmentationObject/0.png')
    Image.fromarray(values[1:]).save(folder / 'SegmentationObject/2.png')
    (folder / 'SegmentationObject/3.png').write_bytes(b'no PNG')
    written, said = converted('voc', folder)
    things = written['train']['annotations']
    for thing, number in zip(things, (2, 3)):
        mask = mask_utils.decode(thing['segmentation'])
        np.testing.assert_array_equal(mask, values == number)
        assert thing['area'] == (values == number).sum()
    assert [thing['bbox'] for thing in things[:2]] == [[8, 10, 24, 30], [50, 10, 24, 30]]
    assert not any('segmentation' in thing for thing in things[2:])
    for words in ('objects that their map does not have: boxes alone (1): ',
                  'objects in maps that are not in the XML file, left out (1): ',
                  'photographs without a map in SegmentationObject: boxes alone (1): ',
                  'maps that are unreadable, in colours or of another size: boxes alone (2): '):
        assert words in said


@pytest.mark.parametrize('ending', ['jpg', 'png', 'webp', 'tif'])
@pytest.mark.parametrize('orientation', [1, 3, 6])
def test_sizes_are_those_that_mm_reads(ending, orientation, tmp_path):
    path = tmp_path / f'a.{ending}'
    Image.new('RGB', (96, 64)).save(path, exif=exif(orientation))
    size, stored = read_size(path)
    assert size == mmcv.imfrombytes(path.read_bytes()).shape[1::-1]
    assert stored == (96, 64) or ending == 'tif'  # which Pillow turns itself


# YOLO. Photographs have 96 x 64 pixels.

def test_yolo_boxes_and_outlines_in_one_file(converted, tmp_path):
    """Numbers are not rounded."""
    folder = write_yolo(tmp_path / 'yolo')
    values = [0.123456789, 0.2345678901, 0.3456789, 0.1, 0.9, 0.98765432101]
    (folder / 'labels/val/3.txt').write_text('1 ' + ' '.join(map(str, values)))
    written, said = converted('yolo', folder)
    assert count(written) == dict(train=3, val=1) and 'W ' not in said
    box, outline, *_ = written['train']['annotations']
    assert box == dict(bbox=[12, 16, 24, 32], area=768, category_id=1, iscrowd=0, id=1,
                       image_id=1)
    assert outline['segmentation'] == [[48, 16, 72, 16, 72, 48]]
    assert outline['bbox'] == [48, 16, 24, 32] and outline['area'] == 24 * 32 / 2
    thing, = written['val']['annotations']
    assert thing['segmentation'] == [[v * s for v, s in zip(values, [96, 64] * 3)]]
    assert written['val']['images'][0]['file_name'] == '../yolo/images/val/3.png'


YAMLS = {
    'dict': 'train: images/train\nval: images/val\nnames: {0: cat, 1: dog}',
    'path': 'path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]',
    "another computer's path": 'path: /content/x\ntrain: images/train\nval: images/val\n'
                               'names:\n  0: cat\n  1: dog',
    'roboflow': 'train: ../images/train\nval: ../images/val\ntest: ../images/test\nnc: 2\n'
                "names: ['cat', 'dog']",
    'lists': 'train: [images/train/0.txt, images/train/1.txt]\nval: val.txt\nnames: [cat, dog]',
    'folders': 'train: [images/train]\nval:\n- images/val\nnames: [cat, dog]\n',
    'byte order mark': '\ufefftrain: images/train\nvalid: images/val\nnames: [cat, dog]',
}


@pytest.mark.parametrize('text', YAMLS.values(), ids=YAMLS)
def test_yolo_data_yaml(text, converted, tmp_path):
    folder = write_yolo(tmp_path / 'yolo')
    if 'val.txt' in text:
        (folder / 'images/train/0.txt').write_text('./0.png\n')
        (folder / 'images/train/1.txt').write_text(f'{folder}/images/train/1.png\n\nlost.png\n')
        (folder / 'val.txt').write_text('images/val/3.png\n')
    (folder / 'data.yaml').write_text(text, 'utf-8')
    written, said = converted('yolo', folder / 'data.yaml' if 'path' in text else folder)
    names = {part: [image['file_name'].rpartition('/')[2] for image in content['images']]
             for part, content in written.items()}
    assert names == dict(train=['0.png', '1.png', '2.png'][:2 if 'val.txt' in text else 3],
                         val=['3.png'])
    assert [c['name'] for c in written['train']['categories']] == ['cat', 'dog']
    assert ('that are not there, left out (1): test: ../images/test' in said) == ('nc' in text)
    assert ('lists that are not there, left out (1)' in said) == ('val.txt' in text)


def test_yolo_folders_in_folders_without_yaml(converted, tmp_path):
    """Labels beside photographs, or in labels/; parts by the names of folders."""
    for i, place in enumerate(('train/images/x/y', 'valid/images', 'test/deep')):
        draw(tmp_path / 'yolo' / place / f'{i}.png', i)
        labels = tmp_path / 'yolo' / place.replace('images', 'labels') / f'{i}.txt'
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text('1 0.5 0.5 0.5 0.5\n')
    with pytest.raises(UserError, match=r'write classes\.txt'):
        converted('yolo', tmp_path / 'yolo')
    (tmp_path / 'yolo/classes.txt').write_text('cat\ndog\n')
    written, said = converted('yolo', tmp_path / 'yolo')
    assert 'W ' not in said and {
        part: [(i['file_name'], len(content['annotations'])) for i in content['images']]
        for part, content in written.items()} == dict(
            train=[('../yolo/train/images/x/y/0.png', 1)],
            val=[('../yolo/valid/images/1.png', 1)], test=[('../yolo/test/deep/2.png', 1)])


def test_yolo_exif(converted, tmp_path):
    """Labels are those of the upright photograph, as Ultralytics reads it."""
    folder = write_yolo(tmp_path / 'yolo')
    (folder / 'images/val/3.png').unlink()
    Image.new('RGB', (96, 64)).save(folder / 'images/val/3.jpg', exif=exif(6))
    written = converted('yolo', folder)[0]['val']
    assert (written['images'][0]['width'], written['images'][0]['height']) == (64, 96)
    assert written['annotations'][0]['bbox'] == [8, 24, 16, 48]


LABELS = {
    '': (0, None), '\n \n': (0, None), None: (0, 'photographs without a label file, kept'),
    '2 0.5 0.5 0.5 0.5': (0, 'objects of classes other than 0 to 1, left out'),
    '-1 0.5 0.5 0.5 0.5': (0, 'objects of classes other than 0 to 1, left out'),
    '0 0.5 0.5 1.5 0.5': (1, 'objects with values outside of 0 to 1, kept'),
    '0 -0.1 0 1 0 1 1': (1, 'objects with values outside of 0 to 1, kept'),
    '0 nan 0.5 0.5 0.5': (0, 'lines that are neither a box'),
    '0 0.5 0.5 0.5 0.5 0.99': (0, 'lines that are neither a box'),
    '0 0.1 0.1 0.2 0.2 0.3 0.3 0.4': (0, 'lines that are neither a box'),
    'cat 0.5 0.5 0.5 0.5': (0, 'lines that are neither a box'),
    '1.0 0.5 0.5 0.5 0.5': (1, None),
}


@pytest.mark.parametrize('text', LABELS)
def test_yolo_labels(text, converted, tmp_path):
    folder = write_yolo(tmp_path / 'yolo')
    file = folder / 'labels/val/3.txt'
    file.unlink() if text is None else file.write_text(text)
    written, said = converted('yolo', folder)
    number, words = LABELS[text]
    assert count(written)['val'] == 1 and len(written['val']['annotations']) == number
    assert said.count('W ') == said.count('(1): ') == said.count('/3.') == bool(words)
    assert not words or f'W {words}' in said
    if text == '0 0.5 0.5 1.5 0.5':
        assert written['val']['annotations'][0]['bbox'] == [-24, 16, 144, 32]  # not clipped


def test_yolo_what_else_is_said_or_refused(converted, tmp_path):
    folder = write_yolo(tmp_path / 'yolo')
    (folder / 'labels/train/gone.txt').write_text('0 0.5 0.5 0.5 0.5')
    (folder / 'labels/train/README.txt').write_text('These are labels of pets.')
    (folder / 'images/train/2.png').write_bytes(b'')
    assert converted('yolo', folder)[1].splitlines()[:2] == [
        f'W photographs that cannot be read, left out (1): {folder}/images/train/2.png',
        f'W label files without a photograph, left out (2): {folder}/labels/train/2.txt, '
        f'{folder}/labels/train/gone.txt']
    for text, words in (('train: images/train', "no YAML with 'names'"),
                        ('names: 3', "no YAML with 'names'"),
                        ('names: [a', "no YAML with 'names'"),
                        ('names: [a]\nkpt_shape: [17, 3]', 'key points'),
                        ('names: [a]\ntrain: lost', 'no photograph of yolo in')):
        (folder / 'data.yaml').write_text(text)
        with pytest.raises(UserError, match=words):
            converted('yolo', folder, out='new')
    (folder / 'other.yml').write_text('names: [a]')
    (folder / 'data.yaml').rename(folder / 'pets.yaml')
    for sources, words in (
            ([folder], 'has 2 YAML files: name the one'),
            ([folder / 'images/train/0.png'], 'give a folder, or a data.yaml'),
            ([tmp_path / 'nowhere'], 'no such file or folder'),
            ([write_yolo(tmp_path / 'b'), folder / 'other.yml'], 'has other classes than')):
        with pytest.raises((UserError, FileNotFoundError), match=words):
            converted('yolo', *sources, out='new')
    assert not (tmp_path / 'new').exists() and not (tmp_path / 'new.partial').exists()


# LabelMe

@pytest.fixture
def labelme(tmp_path, converted):
    """Write a.json beside a.png (96 x 64); convert; its annotations and the lines."""

    def write(*shapes, **others):
        draw(tmp_path / 'a.png', 1)
        (tmp_path / 'a.json').write_text(labelme_json(shapes, **others))
        written, said = converted('labelme', tmp_path)
        content = written['train']
        for thing in content['annotations']:
            thing['name'] = content['categories'][thing['category_id'] - 1]['name']
        return content, said

    return write


def test_labelme_polygons_stay_to_the_last_digit(labelme):
    points = [[10.123456789012345, 20.1], [30.000000000000004, 20], [25, 44.44444444444444]]
    content, said = labelme(shape('cat', points), dict(shape('dog', [[1, 1], [5, 1], [5, 4]]),
                                                       shape_type=None))
    cat, dog = content['annotations']
    assert cat['segmentation'] == [sum(points, [])] and cat['iscrowd'] == 0
    assert cat['bbox'] == [10.123456789012345, 20, 30.000000000000004 - 10.123456789012345,
                           44.44444444444444 - 20]
    (x1, y1), (x2, y2), (x3, y3) = points
    expected = abs((x2 - x1) * (y3 - y1) - (x3 - x1) * (y2 - y1)) / 2
    assert cat['area'] == pytest.approx(expected, rel=1e-12)
    assert dog['area'] == 6 and 'W ' not in said


def test_labelme_rectangles_and_groups(labelme):
    """A group is one object, of one label; corners may be any two."""
    content, _ = labelme(
        shape('cat', [[30, 40], [10, 20]], 'rectangle', 7),
        shape('dog', [[0, 0], [1, 0], [0, 1]]),
        shape('cat', [[50, 50], [60, 50], [60, 60]], group=7),
        shape('dog', [[2, 2], [3, 2], [2, 3]], group=7), shape('cat', [[5, 5], [6, 5], [5, 6]]))
    things = content['annotations']
    assert [(thing['name'], len(thing['segmentation'])) for thing in things] == [
        ('cat', 2), ('dog', 1), ('dog', 1), ('cat', 1)]
    assert things[0]['segmentation'] == [[10, 20, 30, 20, 30, 40, 10, 40],
                                         [50, 50, 60, 50, 60, 60]]
    assert things[0]['bbox'] == [10, 20, 50, 40] and things[0]['area'] == 20 * 20 + 50


@pytest.mark.parametrize('radius', [0, 0.5, 5, 25])
def test_labelme_circles(radius, labelme):
    content, said = labelme(shape('cat', [[30, 32], [30 + radius * 0.6, 32 + radius * 0.8]],
                                  'circle'))
    thing, = content['annotations']
    corners = np.reshape(thing['segmentation'][0], (-1, 2)) - (30, 32)
    np.testing.assert_allclose(np.hypot(*corners.T), radius, atol=1e-9)
    box = [30 - radius, 32 - radius, 2 * radius, 2 * radius]
    np.testing.assert_allclose(thing['bbox'], box, atol=1e-9)
    middles = (corners + np.roll(corners, 1, 0)) / 2
    assert (np.hypot(*middles.T) >= radius - 0.1 - 1e-9).all()
    assert thing['area'] <= math.pi * radius ** 2 and 'W circles, as outlines' in said


def test_labelme_what_is_left_out_is_said(labelme, tmp_path):
    (tmp_path / 'broken.json').write_text('{"shapes": [')
    (tmp_path / 'settings.json').write_text('{"a": 1}')
    (tmp_path / 'list.json').write_text('[1]')
    (tmp_path / 'alone.json').write_text(labelme_json([]))
    content, said = labelme(
        shape('cat', [[1, 1], [9, 1], [9, 9]]), shape('cat', [[1, 1]], 'point'),
        shape('cat', [[1, 1], [2, 2]], 'line'),
        shape('cat', [[1, 1], [2, 2], [3, 1]], 'linestrip'),
        shape('cat', [[1, 1], [2, 2]]), shape('cat', [[1, math.nan], [2, 2], [3, 1]]),
        shape('', [[1, 1], [9, 1], [9, 9]]), shape('cat', None), shape('cat', [[1], [2], [3]]))
    assert len(content['images']) == len(content['annotations']) == 1
    for words in ('broken JSON files, left out (1): ', "not LabelMe's, left out (2): ",
                  'files without their photograph, left out (1): ',
                  'shapes of the kind point, left out (1): ',
                  'shapes of the kind line, left out (1): ',
                  'shapes of the kind linestrip, left out (1): ',
                  'not two numbers, left out (4): ', 'shapes without a label, left out (1): '):
        assert words in said, words
    for name in ('broken', 'settings', 'list', 'alone', 'a'):
        assert f'{name}.json' in said


def test_labelme_image_data_where_the_photograph_is_missing(converted, tmp_path):
    folder = write_labelme(tmp_path / 'photos')
    for name in '01':
        stored = (folder / f'{name}.png').read_bytes()
        text = json.loads((folder / f'{name}.json').read_text())
        (folder / f'{name}.json').write_text(json.dumps(
            dict(text, imageData=base64.b64encode(stored).decode())))
    missing = (folder / '0.png').rename(tmp_path / '0.png')
    (folder / 'bad.json').write_text(labelme_json([], imageData='no picture'))
    written, said = converted('labelme', folder)
    names = [image['file_name'] for image in written['train']['images']]
    assert names == ['photographs/000000_0.png', *(f'../photos/{i}.png' for i in (1, 2, 3))]
    photo, = (tmp_path / 'out').rglob('*.png')
    assert photo.read_bytes() == missing.read_bytes()  # not encoded again
    assert f'imageData, written beside the JSON (1): {folder}/0.json\n' in said
    assert f'left out (1): {folder}/bad.json\n' in said
    split, = read('masks', tmp_path / 'out/train.json')
    assert split.findings == [] and len(split.sizes) == 4


def test_labelme_path_and_size(labelme, tmp_path):
    draw(tmp_path / 'far/b.png', 2)
    (tmp_path / 'b.json').write_text(labelme_json([], imagePath='far\\b.png', imageHeight=60))
    content, said = labelme(imagePath='c.png')
    assert [i['file_name'] for i in content['images']] == ['../a.png', '../far/b.png']
    assert 'a.json (names c.png)' in said and 'b.json (96x60, not 96x64)' in said


# --val

def test_val_is_by_whole_photographs_the_same_everywhere(converted, tmp_path):
    folder = write_labelme(tmp_path / 'photos')
    for i in range(4, 20):
        draw(folder / f'{i}.png', i)
        shutil.copy(folder / '0.json', folder / f'{i}.json')
    for i in range(0, 20, 2):  # the same pixels in another file
        Image.open(folder / f'{i}.png').save(folder / f'twin{i}.bmp')
        shutil.copy(folder / '0.json', folder / f'twin{i}.json')
    other = shutil.copytree(folder, tmp_path / 'elsewhere/renamed')
    for path in sorted(other.glob('1*')):
        path.rename(other / f'z{path.name}')

    def split(source, out):
        written, _ = converted('labelme', source, out=out, val=0.25)
        return written, {part: {cv2.imread(str(tmp_path / out / image['file_name'])).tobytes()
                                for image in content['images']}
                         for part, content in written.items()}

    (written, pictures), (_, there) = split(folder, 'a'), split(other, 'b')
    assert pictures == there and not pictures['train'] & pictures['val']
    sizes = count(written)
    assert sum(sizes.values()) == 30 and 8 <= sizes['val'] <= 9  # two may be one too many


def test_val_has_each_class_that_can_be_on_both_sides(converted, tmp_path):
    folder = tmp_path / 'photos'
    rare = {0: 'rare', 1: 'rare', 2: 'single', 3: 'twin', 4: 'twin'}
    for i in range(12):
        draw(folder / f'{i}.png', i if i != 4 else 3)  # 3 and 4 are one picture
        (folder / f'{i}.json').write_text(labelme_json(
            [shape(name, [[1, 1], [9, 1], [9, 9]]) for name in ['usual', rare.get(i)] if name]))
    found, said = converted('labelme', folder, val=0.1)
    names = {part: {content['categories'][thing['category_id'] - 1]['name']
                    for thing in content['annotations']} for part, content in found.items()}
    assert names == dict(train={'usual', 'rare', 'single', 'twin'}, val={'usual', 'rare'})
    assert found['train']['categories'] == found['val']['categories']
    assert said.startswith('W classes that are in the training alone: they have too few '
                           'photographs (2): single, twin\n')


def test_val_is_refused_where_it_makes_no_sense(converted, tmp_path):
    photos, same = (write_labelme(tmp_path / name) for name in ('photos', 'same'))
    for i in (1, 2, 3):
        shutil.copy(same / '0.png', same / f'{i}.png')
    for kind, source, options, words in (
            ('voc', write_voc(tmp_path / 'voc'), dict(val=0.2), 'has its own lists or folders'),
            ('yolo', write_yolo(tmp_path / 'yolo'), dict(val=0.2), 'has its own lists or fo'),
            ('labelme', photos, dict(val=1), 'at least 0 and less than 1'),
            ('labelme', photos, dict(val=-0.1), 'at least 0 and less than 1'),
            ('labelme', same, dict(val=0.2), 'two photographs that differ'),
            ('labelme', photos, dict(out='photos'), 'exists: give a new folder')):
        with pytest.raises(UserError, match=words):
            converted(kind, source, **options)
        assert not (tmp_path / 'out').exists()
    (tmp_path / 'voc/ImageSets/Main/val.txt').unlink()
    (tmp_path / 'voc/ImageSets/Main/test.txt').unlink()
    assert count(converted('voc', tmp_path / 'voc', val=0.5)[0]) == dict(train=1, val=1)


# Another reader

@pytest.mark.parametrize('kind', ['voc', 'yolo'])
def test_boxes_are_those_that_labelformat_reads(kind, converted, tmp_path):
    formats = pytest.importorskip('labelformat.formats')
    rng = np.random.default_rng(0)
    folder = dict(voc=write_voc, yolo=write_yolo)[kind](tmp_path / kind)
    for path in folder.glob('Annotations/*.xml'):
        low, sides = rng.integers(0, (48, 32), (2, 5, 2))
        things = [('cat', *corners) for corners in np.hstack([low, low + sides + 1]).tolist()]
        path.write_text(voc_xml(things, f'{path.stem}.jpg', (96, 64)))
    for path in folder.glob('labels/*/*.txt'):
        path.write_text(''.join('1 {} {} {} {}\n'.format(*rng.random(4)) for _ in range(5)))
    content = converted(kind, folder)[0]['train']
    ours = {os.path.basename(image['file_name']): [
        thing['bbox'] for thing in content['annotations'] if thing['image_id'] == image['id']]
        for image in content['images']}
    other = (formats.PascalVOCObjectDetectionInput(folder / 'Annotations', 'cat,dog')
             if kind == 'voc' else
             formats.YOLOv8ObjectDetectionInput(folder / 'data.yaml', 'train'))
    theirs = {os.path.basename(label.image.filename): [
        [o.box.xmin, o.box.ymin, o.box.xmax - o.box.xmin, o.box.ymax - o.box.ymin]
        for o in label.objects] for label in other.get_labels()}
    assert ours.keys() <= theirs.keys() and sum(map(len, ours.values())) >= 10
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-9)
