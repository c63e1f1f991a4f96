"""The figures of classifiers and segmenters, and whole reports of each package."""
import numpy as np
import pytest
import torch
from mmengine.runner import CheckpointLoader
from mmseg.evaluation import IoUMetric
from torch.testing import assert_close

from mmrest.apis import build_model, read_config
from mmrest.report import classes, make_report

from ..tiny_data import write_digits


def test_a_classifiers_figures_are_those_by_hand():
    pairs = [(0, 0), (0, 1), (1, 1), (1, 1), (1, 0), (0, 1)]  # label, found; no third class
    guesses = [classes.Guess(f'{i}.jpg', label, found, 0.9 - i / 10, 0.05)
               for i, (label, found) in enumerate(pairs)]
    figures = classes.count(guesses, ('cat', 'dog', 'bird'))
    assert figures['confusions'] == [[1, 2, 0], [1, 2, 0], [0, 0, 0]]
    cat, dog, bird = figures['classes']
    assert_close([cat[key] for key in ('images', 'precision', 'recall', 'f1')],
                 [3, 1 / 2, 1 / 3, 2 / 5], rtol=1e-6, atol=0)
    assert_close([dog[key] for key in ('images', 'precision', 'recall', 'f1')],
                 [3, 1 / 2, 2 / 3, 4 / 7], rtol=1e-6, atol=0)
    assert bird['images'] == 0 and bird['recall'] is bird['f1'] is None
    assert figures['accuracy'] == 0.5
    assert [one['path'] for one in figures['worst']] == ['1.jpg', '4.jpg', '5.jpg']


def test_a_segmenters_figures_are_those_of_mmseg():
    pytest.importorskip('hotcoco')
    from mmrest.report.segments import PixelCount
    generator = torch.Generator().manual_seed(0)
    pixels, results = PixelCount(4), []
    for i in range(15):
        truth = torch.randint(0, 3, (1, 20 + i, 30), generator=generator)  # never class 3
        noise = torch.randint(0, 3, truth.shape, generator=generator)
        found = torch.where(torch.rand(truth.shape, generator=generator) < i / 14, truth, noise)
        truth[:, :4] = 255
        pixels.take(dict(img_path=f'{i}.jpg', gt_sem_seg=dict(data=truth),
                         pred_sem_seg=dict(data=found)))
        results.append(IoUMetric.intersect_and_union(found[0], truth[0], 4, 255))
    figures = pixels.figures('abcd')
    total = [sum(areas) for areas in zip(*results)]
    wanted = IoUMetric.total_area_to_metrics(*total, ['mIoU'])
    for row, iou, recall in zip(figures['classes'], wanted['IoU'], wanted['Acc']):
        if row['name'] == 'd':
            assert np.isnan(iou) and row['iou'] is None
        else:
            assert_close((row['iou'], row['recall']), (float(iou), float(recall)),
                         rtol=1e-6, atol=0)
    assert_close(figures['aAcc'], float(wanted['aAcc']), rtol=1e-6, atol=0)
    shares = [one['right'] for one in figures['worst']]
    assert shares == sorted(shares) and len(shares) == 12
    assert figures['worst'][0]['path'] in ('0.jpg', '1.jpg', '2.jpg')


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """A config of each package with random weights, and two images."""
    folder = tmp_path_factory.mktemp('report')
    write_digits(folder)
    for package in ('mmdet', 'mmpretrain', 'mmseg'):
        torch.manual_seed(0)
        model = build_model(read_config(str(folder / f'{package}.py')))
        torch.save(dict(state_dict=model.state_dict()), folder / f'{package}.pth')
    return folder


@pytest.mark.parametrize('package, pictures', [
    ('mmdet', 'image/jpeg'), ('mmpretrain', 'image/jpeg'), ('mmseg', 'image/png')])
def test_a_checkpoint_is_tested(package, pictures, digits, monkeypatch):
    if package != 'mmpretrain':
        pytest.importorskip('hotcoco')
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.chdir(digits)
    before = set(digits.rglob('*'))
    report = make_report(f'{package}.py', f'{package}.pth')
    assert make_report(f'{package}.py', f'{package}.pth').json() == report.json()
    figures = report.figures
    assert set(digits.rglob('*')) == before  # no logs
    if package == 'mmdet':
        assert figures['images'] == 2 and figures['kinds']['bbox']['found'] == 40
        number = len(figures['worst'])
    elif package == 'mmpretrain':
        matrix = np.array(figures['confusions'])
        assert figures['images'] == matrix.sum() and matrix.shape == (10, 10)
        assert figures['accuracy'] == pytest.approx(matrix.trace() / matrix.sum())
        number = min(figures['wrong'], 12)
    else:
        assert np.sum(figures['confusions']) == 2 * 128 * 128
        assert len(figures['classes']) == 11
        number = 2 * len(figures['worst'])  # the truth, and what was found
    assert report.page.count(f'data:{pictures}') == number > 0
    assert f'{package}.pth' in report.page
