"""Tiles of photographs, with the boxes, outlines and masks in them."""
import json
import weakref

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from mmrest.errors import UserError
from mmrest.own_data import read, tiles
from mmrest.own_data.formats.photos import read_pixels
from mmrest.own_data.tiles import cut

from ..tiny_data import draw, write_coco

WIDTH, HEIGHT = 150, 100
OUTLINE = [60.5, 20, 140, 30.25, 130, 90, 70, 50]  # not convex
CONCAVE = [5, 60, 120, 60, 120, 95, 5, 95, 5, 90, 110, 90, 110, 65, 5, 65]  # a C turned around


def thing(box, **others):
    return dict(dict(category_id=1, image_id=7, bbox=box, area=box[2] * box[-1], iscrowd=0),
                **others)


def rle(mask, as_list=False):
    if as_list:
        changes = np.flatnonzero(np.diff([0, *mask.T.ravel().tolist()]))
        counts = np.diff([0, *changes, mask.size]).tolist()
        return dict(size=list(mask.shape), counts=counts)
    encoded = mask_utils.encode(np.asfortranarray(mask))
    return dict(encoded, counts=encoded['counts'].decode())


def write(folder, *things, **image):
    """Write folder/images/deep/a.png and a COCO file with things on it."""
    draw(folder / 'images/deep/a.png', 0, (HEIGHT, WIDTH))
    image = dict(dict(id=7, file_name='deep/a.png', width=WIDTH, height=HEIGHT), **image)
    content = dict(info=dict(year=2024), images=[image], categories=[dict(id=1, name='cat')],
                   annotations=[dict(entry, id=i) for i, entry in enumerate(things, 1)])
    (folder / 'train.json').write_text(json.dumps(content))
    return folder / 'train.json'


def tiles_of(out, name='train.json'):
    """Content, and per tile its corner and its annotations."""
    content = json.loads((out / name).read_text())
    for image in content['images']:
        *_, x, y = image['file_name'][:-4].split('_')
        yield (int(x), int(y), image['width'], image['height'],
               [a for a in content['annotations'] if a['image_id'] == image['id']],
               out / 'images' / image['file_name'])


@pytest.mark.parametrize('tile, overlap, corners', [
    (64, 0., [[0, 43, 86], [0, 36]]), (50, 0., [[0, 50, 100], [0, 50]]),
    (64, 0.5, [[0, 29, 57, 86], [0, 18, 36]]), (200, 0.2, [[0], [0]]),
    (100, 0.2, [[0, 50], [0]])])
def test_tiles_cover_the_photograph(tile, overlap, corners, tmp_path):
    file = write(tmp_path)
    pixels = cv2.imread(str(tmp_path / 'images/deep/a.png'))
    lines = cut(file, tile, tmp_path / 'out', overlap)
    seen, found = np.zeros((HEIGHT, WIDTH), bool), []
    for x, y, width, height, _, path in tiles_of(tmp_path / 'out'):
        found.append((x, y))
        np.testing.assert_array_equal(cv2.imread(str(path)),
                                      pixels[y:y + height, x:x + width])
        assert (width, height) == (min(tile, WIDTH), min(tile, HEIGHT))
        seen[y:y + height, x:x + width] = True
    xs, ys = corners
    assert seen.all() and found == [(x, y) for y in ys for x in xs]
    for line, size in zip(corners, (WIDTH, HEIGHT)):
        assert all(a + min(tile, size) - b >= overlap * tile for a, b in zip(line, line[1:]))
    assert lines == [f'{tmp_path}/out/train.json: {len(found)} images, 0 objects, 0 crowds']
    assert json.loads((tmp_path / 'out/train.json').read_text())['info'] == dict(year=2024)


def test_boxes_are_cut_and_slivers_are_crowds(tmp_path):
    boxes = [[10, 10, 20, 30], [60, 50, 44, 40], [120.25, 5, 29.5, 30]]
    cut(write(tmp_path, *map(thing, boxes), thing([70, 10, 10, 10], iscrowd=1)), 64,
        tmp_path / 'out')
    crowds = []
    for x, y, width, height, things, _ in tiles_of(tmp_path / 'out'):
        expected = []
        for x1, y1, w, h in boxes:
            left, top = max(x1, x), max(y1, y)
            right, bottom = min(x1 + w, x + width), min(y1 + h, y + height)
            if right - left >= 1 and bottom - top >= 1:
                area = (right - left) * (bottom - top)
                expected.append(([left - x, top - y, right - left, bottom - top], area,
                                 int(2 * area < w * h)))
        ours = [(a['bbox'], a['area'], a['iscrowd']) for a in things if a['area'] != 100]
        assert ours == expected
        crowds += [crowd for *_, crowd in ours]
        assert all(a['iscrowd'] for a in things if a['area'] == 100)  # stays one
    assert 0 in crowds and 1 in crowds
    split, = read('boxes', tmp_path / 'out/train.json')
    assert [f for f in split.findings if f.level == 'E'] == []


def painted(outlines, scale=1, shape=(HEIGHT, WIDTH)):
    height, width = (side * scale for side in shape)
    parts = mask_utils.frPyObjects([[v * scale for v in part] for part in outlines], height,
                                   width)
    return mask_utils.decode(mask_utils.merge(parts))


@pytest.mark.parametrize('outlines', [[OUTLINE], [CONCAVE], [OUTLINE, [5, 5, 20, 5, 5, 20]]])
def test_outlines_are_cut(outlines, tmp_path):
    """Against the same outlines, painted 8 times as large and then cut."""
    xs, ys = ([v for part in outlines for v in part[i::2]] for i in (0, 1))
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    whole = painted(outlines, 8).astype(bool)
    cut(write(tmp_path, thing(box, segmentation=outlines)), 64, tmp_path / 'out')
    pieces = 0
    for x, y, width, height, things, _ in tiles_of(tmp_path / 'out'):
        mask = whole[8 * y:8 * (y + height), 8 * x:8 * (x + width)]
        assert len(things) == (mask.sum() > 64)
        for piece in things:
            pieces += 1
            ours = painted(piece['segmentation'], 8, (height, width)).astype(bool)
            assert (ours & mask).sum() / (ours | mask).sum() > 0.97
            assert piece['area'] == pytest.approx(mask.sum() / 64, rel=0.03)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            left, top, w, h = (8 * v for v in piece['bbox'])
            np.testing.assert_allclose(
                [left, top, left + w, top + h],
                [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], atol=4)
            assert piece['iscrowd'] == (2 * mask.sum() < whole.sum())
    assert pieces >= 4


def test_cut_outlines_end_at_the_border(tmp_path):
    """Exactly: a corner that rounding puts outside of its image is a finding elsewhere."""
    outlines = np.random.default_rng(0).random((50, 6)) * ([WIDTH, HEIGHT] * 3)
    things = [thing([0, 0, WIDTH, HEIGHT], segmentation=[points]) for points in
              outlines.tolist()]
    cut(write(tmp_path, *things), 64, tmp_path / 'out')
    corners = [np.reshape(part, (-1, 2)) / (width, height)
               for *_, width, height, found, _ in tiles_of(tmp_path / 'out')
               for piece in found for part in piece['segmentation']]
    assert len(corners) > 100
    low, high = np.concatenate(corners).min(0), np.concatenate(corners).max(0)
    assert low.tolist() == [0, 0] and high.tolist() == [1, 1]


def test_what_is_whole_stays_as_it_is(tmp_path):
    """Numbers of an object that is not cut move by the corner of the tile and nothing else."""
    outline = [70.125, 10, 90, 12.5, 80, 30]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[12:20, 72:80] = 1
    given = [thing([70, 9, 21, 22], segmentation=[outline], area=123.5, score=0.5),
             thing([71, 11, 10, 10], segmentation=rle(mask)), thing([50.1, 0.1, 20.2, 0.7]),
             thing([50.1, 0.1, 20.2, 1.7])]
    cut(write(tmp_path, *given), 50, tmp_path / 'out')
    pieces = {(x, y): things for x, y, *_, things, _ in tiles_of(tmp_path / 'out') if things}
    (corner, (first, second, third)), = pieces.items()
    assert corner == (50, 0)
    assert first['bbox'] == [20, 9, 21, 22] and first['area'] == 123.5
    assert first['segmentation'] == [[20.125, 10, 40, 12.5, 30, 30]] and first['score'] == 0.5
    assert second['bbox'] == [21, 11, 10, 10] and second['area'] == 64
    assert third['bbox'][2:] == [20.2, 1.7] != [50.1 + 20.2 - 50.1, 0.1 + 1.7 - 0.1]
    np.testing.assert_array_equal(mask_utils.decode(second['segmentation']),
                                  mask[:50, 50:100])


@pytest.mark.parametrize('as_list', [False, True])
def test_masks_are_cut(as_list, tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(mask, (80, 50), (60, 40), 20, 0, 360, 1, -1)
    mask[40:60, 70:90] = 0  # with a hole
    segmentation = rle(mask, as_list)
    if as_list:
        encoded = mask_utils.frPyObjects(segmentation, HEIGHT, WIDTH)
        np.testing.assert_array_equal(mask_utils.decode(encoded), mask)
    box = mask_utils.toBbox(rle(mask)).tolist()
    cut(write(tmp_path, thing(box, segmentation=segmentation)), 64, tmp_path / 'out')
    pieces = 0
    for x, y, width, height, things, _ in tiles_of(tmp_path / 'out'):
        part = mask[y:y + height, x:x + width]
        assert len(things) == part.any()
        for piece in things:
            pieces += 1
            np.testing.assert_array_equal(mask_utils.decode(piece['segmentation']), part)
            assert piece['area'] == part.sum()
            assert piece['bbox'] == mask_utils.toBbox(rle(part)).tolist()
            assert piece['iscrowd'] == (2 * part.sum() < mask.sum())
    assert pieces >= 4
    split, = read('masks', tmp_path / 'out/train.json')
    assert [f.where for f in split.findings if f.level == 'E'] == [['nothing']]  # but crowds


def test_what_is_left_out_is_said(tmp_path):
    small = np.ones((10, 10), np.uint8)
    lines = cut(write(
        tmp_path, thing([10, 20, 20, 0]), thing([50, 10, -30, 30]), thing([200, 10, 40, 30]),
        thing([float('nan'), 1, 2, 3]), thing([1, 2, 3]), thing([1, 1, 9, 9], image_id=8),
        thing([1, 1, 9, 9], segmentation=[[1, 1, 9, 9], [1, 1, 9, 1, 9, 9]]),
        thing([1, 1, 9, 9], segmentation=rle(small)),
        thing([1, 1, 9, 9], segmentation=dict(size=[HEIGHT, WIDTH], counts=[3, 4])),
        thing([1, 1, 9, 9], keypoints=[1, 1, 2], num_keypoints=1),
        thing([40, 40, 60, 20])), 50, tmp_path / 'out')
    said = '\n'.join(lines)
    photo = tmp_path / 'images/deep/a.png'
    for words in (f'nowhere a pixel wide and high, left out (3): {photo}',
                  "'bbox' is not four numbers, left out (2): annotation 4, annotation 5",
                  'objects of no image, left out (1): annotation 6',
                  f'fewer than three points, or NaN, left out (1): {photo}',
                  f'masks of another size than their photograph, left out (2): {photo}',
                  f'objects with key points, which are left out (1): {photo}',
                  f'no tile has half, so that all their pieces are crowds (1): {photo}'):
        assert words in said, words
    things = [a for *_, things, _ in tiles_of(tmp_path / 'out') for a in things]
    assert [len(a['segmentation']) for a in things if 'segmentation' in a] == [1]
    assert not any('keypoints' in a or 'num_keypoints' in a for a in things)


def test_names_and_places(tmp_path):
    """Photographs of one name; a JSON in COCO's layout, with a byte order mark."""
    content = dict(images=[], annotations=[], categories=[dict(id=1, name='cat')])
    for i, place in enumerate(('north', 'south')):
        draw(tmp_path / 'train' / place / 'a.png', i)
        content['images'].append(dict(id=i, file_name=f'{place}/a.png', width=96, height=64))
    file = tmp_path / 'annotations/instances_train.json'
    file.parent.mkdir()
    file.write_text('\ufeff' + json.dumps(content), 'utf-8')
    cut(file, 64, tmp_path / 'out')
    written = list(tiles_of(tmp_path / 'out', file.name))
    assert len({path for *_, path in written}) == len(written) == 4
    for (x, y, w, h, _, path), place in zip(written, ('north', 'north', 'south', 'south')):
        pixels = cv2.imread(str(tmp_path / 'train' / place / 'a.png'))
        np.testing.assert_array_equal(cv2.imread(str(path)), pixels[y:y + h, x:x + w])


def test_sixteen_bits_stay(tmp_path):
    file = write(tmp_path)
    values = np.random.default_rng(0).integers(0, 65535, (HEIGHT, WIDTH, 3), np.uint16)
    photo = tmp_path / 'images/deep/a.png'
    cv2.imwrite(str(photo), values)
    cut(file, 200, tmp_path / 'out')
    (*_, path), = tiles_of(tmp_path / 'out')
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), values)
    np.testing.assert_array_equal(cv2.imread(str(path)), cv2.imread(str(photo)))  # as mm reads


def test_what_is_refused(tmp_path):
    def refused(words, file, tile=64, out='out', **options):
        with pytest.raises(UserError, match=words):
            cut(file, tile, tmp_path / out, **options)
        assert {path.name for path in tmp_path.iterdir()} == before

    file = write(tmp_path)
    for name, text in (('broken', '{'), ('list', '[]'), ('fields', '{"images": [{}]}')):
        (tmp_path / f'{name}.json').write_text(text)
    before = {path.name for path in tmp_path.iterdir()}
    for tile in (0, -5):
        refused(f'--tile={tile} must be 1 or more', file, tile)
    for overlap in (1, -0.1):
        refused('must be at least 0 and less than 1', file, overlap=overlap)
    refused('exists: give a new folder', file, out='images')
    for name in ('broken', 'list', 'fields'):
        refused(rf'{name}\.json: no COCO file', tmp_path / f'{name}.json')
    write(tmp_path, width=100)
    refused(r'a\.png: 150 x 100 pixels, and .*train\.json says 100 x 100', file)
    write(tmp_path, file_name='b.png')
    refused('none of its images is in', file)
    write(tmp_path)
    (tmp_path / 'images/deep/a.png').write_bytes(b'no PNG')
    refused(r'a\.png: missing or not readable', file)
    photo = tmp_path / 'images/deep/a.png'
    cv2.imwrite(str(photo.with_suffix('.tiff')), np.ones((HEIGHT, WIDTH, 3), np.float32))
    photo.with_suffix('.tiff').rename(photo)
    refused('cannot read it as 8 or 16 bits', file)


def test_one_photograph_in_memory_at_a_time(tmp_path, monkeypatch):
    file = write_coco(tmp_path) / 'labels.json'
    loaded, alive = [], []

    def load(path):
        alive.append(sum(pixels() is not None for pixels in loaded))
        pixels = read_pixels(path)
        loaded.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr(tiles, 'read_pixels', load)
    cut(file, 50, tmp_path / 'out')
    assert alive == [0] * 4
