"""The page: what is in it, and what it looks like to a browser."""
import base64
import importlib
import json
import re
import shutil
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from mmrest.errors import MissingPackageError, UserError
from mmrest.report import make_report
from mmrest.report.html import matrix
from mmrest.report.pictures import Box, drawing

from ..deploy.chromium import Chromium
from ..tools.conftest import ROOT

pytest.importorskip('hotcoco')
NAMES = ('ca<t>&"', 'Ω' * 60, 'never there')
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')


def label(image, category, x, **more):
    return dict(image_id=image, category_id=category, bbox=[x, 10., 20., 30.], **more)


@pytest.fixture
def config(tmp_path):
    """Four images: turned by EXIF, grey of 16 bits, with alpha, and missing."""
    images = [dict(id=i, file_name=name, width=64, height=96) for i, name in enumerate(
        ('turned.jpg', 'deep.png', 'alpha.png', 'gone.jpg'))]
    exif = Image.Exif()
    exif[0x0112] = 6
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 96, 3), np.uint8)).save(
        tmp_path / 'turned.jpg', exif=exif)
    cv2.imwrite(str(tmp_path / 'deep.png'), rng.integers(0, 2**16, (96, 64), np.uint16))
    cv2.imwrite(str(tmp_path / 'alpha.png'), rng.integers(0, 255, (96, 64, 4), np.uint8))
    # Other ids and another order than the config's classes.
    kinds = [dict(id=9, name=NAMES[1]), dict(id=4, name=NAMES[0]), dict(id=30, name=NAMES[2]),
             dict(id=2, name='of no interest')]
    labels = [label(i, 9 if i % 2 else 4, 5., id=i) for i in range(4)]
    labels += [label(0, 2, 40., id=4)]
    (tmp_path / 'labels.json').write_text(json.dumps(dict(
        images=images, categories=kinds, annotations=labels)))
    (tmp_path / 'found.bbox.json').write_text(json.dumps(
        [label(i, 4, 5. + i, score=0.9 - i / 10) for i in range(4)] +
        [label(i, 9, 40., score=0.8) for i in range(4)]))
    path = tmp_path / 'config.py'
    base = ROOT / 'configs/retinanet/rest_lite_retinanet_digits.py'
    path.write_text(f"""
_base_ = {str(base)!r}
test_dataloader = dict(dataset=dict(
    data_root={str(tmp_path)!r}, ann_file='labels.json', data_prefix=dict(img=''),
    metainfo=dict(classes={NAMES})))
""")
    return path


def test_the_page_is_one_file_with_its_pictures(config, tmp_path):
    report = make_report(str(config), found=[tmp_path / 'found.bbox.json'], score_thr=0.)
    open_tags = []
    for end, tag in re.findall(r'<(/?)(div|figure|g|section|svg|table|title)\b', report.page):
        if end:
            assert open_tags.pop() == tag
        else:
            open_tags.append(tag)
    assert open_tags == [] and '<script' not in report.page
    links = re.findall(r' (?:href|src)="([^"]*)', report.page)
    pictures = [link for link in links if link.startswith('data:image/jpeg;base64,')]
    others = set(links) - set(pictures)
    assert all(link.startswith(('#', 'https://arxiv.org/')) for link in others)
    shapes = [cv2.imdecode(np.frombuffer(base64.b64decode(picture.split(',')[1]), np.uint8),
                           cv2.IMREAD_UNCHANGED).shape for picture in pictures]
    assert shapes == [(96, 64, 3)] * 3  # mm turns the first as its EXIF data says
    assert report.page.count('gone.jpg cannot be read') == 1
    assert 'ca&lt;t&gt;&amp;&quot; 0.90' in report.page and 'ca<t>' not in report.page
    assert 'of no interest' not in report.page
    assert f'missed {NAMES[1]}</title>' in report.page and f'{"Ω" * 16}…</text>' in report.page

    figures = json.loads(report.json())
    rows = figures['kinds']['bbox']['classes']
    assert [(row['name'], row['objects']) for row in rows] == [
        (NAMES[0], 2), (NAMES[1], 2), (NAMES[2], 0)]  # in the order of their ids
    # Class 4 on all four objects, class 9 on nothing.
    assert figures['kinds']['bbox']['confusions'] == [
        [2, 0, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0], [0, 4, 0, 0]]
    (tmp_path / 'nothing.json').write_text('[]')
    nothing = make_report(str(config), found=[tmp_path / 'nothing.json'])
    assert 'Nothing that was found is right' in nothing.page and 'nan' not in nothing.page
    again = make_report(str(config), found=[tmp_path / 'found.bbox.json'], score_thr=0.)
    assert again.json() == report.json() and figures['score_thr'] == 0


@pytest.mark.skipif(CHROMIUM is None, reason='chromium is not installed')
def test_a_browser_shows_the_figures(config, tmp_path, monkeypatch):
    """The script's page, as Chromium understands it."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools/analysis_tools'))
    out = tmp_path / 'new/report.html'
    monkeypatch.setattr(sys, 'argv', [
        'report', str(config), '--dt', str(tmp_path / 'found.bbox.json'), '--out', str(out),
        '--json', str(tmp_path / 'report.json')])
    importlib.import_module('report').main()
    with Chromium(CHROMIUM, tmp_path / 'profile') as browser:
        browser.open(out.as_uri())
        page = browser.evaluate('document.documentElement.outerHTML')
    figures = json.loads((tmp_path / 'report.json').read_text())
    cells = re.findall(r'<td[^>]*>([^<]*)</td>', page)
    for row in (figures['kinds']['bbox'], *figures['kinds']['bbox']['classes']):
        best = row['best'] or {}
        for value in (*best.values(), row.get('AP'), *row.get('ap', {}).values()):
            shown = '–' if value is None else f'{value:.3f}'
            assert shown in cells or shown in page.partition('Which score')[2]
    shown = [one for one in figures['worst'] if one['file_name'] != 'gone.jpg']
    assert NAMES[1] in cells and page.count('<image ') == len(shown) > 0


def test_what_cannot_be_reported_is_said(config, tmp_path, monkeypatch):
    found, labels = [tmp_path / 'found.bbox.json'], tmp_path / 'labels.json'
    with pytest.raises(UserError, match='either a checkpoint is tested, or --dt'):
        make_report(str(config))
    with pytest.raises(FileNotFoundError, match="checkpoint='gone.pth'"):
        make_report(str(config), 'gone.pth')
    with pytest.raises(UserError, match='--dt and --score-thr are for detectors'):
        make_report(str(ROOT / 'configs/classification/rest_lite_digits.py'), found=found)
    content = json.loads(labels.read_text())
    labels.write_text(json.dumps(dict(content, categories=content['categories'][1:])))
    with pytest.raises(UserError, match=f'lacks classes of the config: {NAMES[1]}'):
        make_report(str(config), found=found)
    no_box = [*content['annotations'], dict(image_id=0, category_id=4)]
    for text, words in (
            ('no', 'labels.json is not JSON: '), ('[]', 'labels.json must be an object of '),
            (json.dumps(dict(content, annotations=[])), 'labels.json has no annotations'),
            (json.dumps(dict(content, annotations=no_box)), r"annotations\[5\] has no 'bbox'"),
            (json.dumps(dict(content, images=content['images'][1:])),
             r'annotations\[0\] is of image 0, which the file does not have')):
        labels.write_text(text)
        with pytest.raises(UserError, match=words):
            make_report(str(config), found=found)
    monkeypatch.setattr('mmrest.report.find_spec', lambda name: None)
    with pytest.raises(MissingPackageError, match='`pip install hotcoco`'):
        make_report(str(config), found=found)


def test_the_matrix_says_what_is_missed():
    cells = re.findall(r'<td[^>]*?(?:title="([^"]*)")?>(\d*)', matrix(
        ['a', 'b'], [[3, 1, 0], [0, 2, 4], [5, 0, 0]], background=True))
    assert [(title, n) for title, n in cells if n] == [
        ('a: 3 as a', '3'), ('a: 1 as b', '1'), ('b: 2 as b', '2'), ('b: 4 as missed', '4'),
        ('nothing there: 5 as a', '5')]


def test_lines_of_a_wide_picture_fit_into_it():
    svg = drawing(np.zeros((60, 3000, 3), np.uint8), [Box('wrong', (5, 5, 20, 20), 'cat')])
    assert 'font-size="12.0"' in svg
