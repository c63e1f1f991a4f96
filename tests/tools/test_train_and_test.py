"""tools/train.py, tools/test.py, mim and mmdet's inferencer, on a few small images."""
import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from torch.testing import assert_close

from mmrest.apis import package_of

from ..tiny_data import (
    DETECTOR_OPTIONS,
    DIGITS,
    write_classifier,
    write_coco2017,
    write_detector,
    write_digits,
)
from ..torture.training import Run, content, distance, same
from .conftest import ROOT, SMALL, run

CONFIG = ROOT / 'configs/mask_rcnn/rest_lite_fpn_1x_coco.py'


def mim(*args, cwd):
    command = [Path(sys.executable).with_name('mim'), *map(str, args)]
    env = dict(os.environ, LC_ALL='C.UTF-8')
    done = subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def metrics(folder):
    path, = folder.glob('*/*.json')
    return json.loads(path.read_text())


def records(folder):
    """What a training logged, in order."""
    path, = folder.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with a config and a checkpoint of each package."""
    folder = tmp_path_factory.mktemp('digits')
    write_digits(folder)
    for package in DIGITS:
        run('train.py', f'{package}.py', '--work-dir', package, cwd=folder)
    return folder


def predictions(folder, name):
    """Metrics, and what --out wrote: label maps from mmseg, else a pickle."""
    figures = metrics(folder / name)
    figures = {k: v for k, v in figures.items() if 'time' not in k}
    if (folder / f'{name}.pkl').is_dir():
        return figures, {p.name: p.read_bytes() for p in (folder / f'{name}.pkl').iterdir()}
    return figures, load(folder / f'{name}.pkl')


@pytest.mark.parametrize('package', DIGITS)
def test_weights_are_those_of_the_stock_scripts(package, trained):
    run('train.py', f'{package}.py', '--work-dir', f'{package}_stock', package=package,
        cwd=trained)
    states = [content(trained / name / 'iter_3.pth') for name in (package, f'{package}_stock')]
    assert same(*states), distance(*states)


@pytest.mark.parametrize('package, tta', [
    *((package, '') for package in DIGITS), ('mmseg', '--tta'),
    *(pytest.param(package, '--tta', marks=pytest.mark.slow)
      for package in ('mmpretrain', 'mmdet'))])
def test_predictions_are_those_of_the_stock_scripts(package, tta, trained):
    """Of two images, of which ours draws pictures, too."""
    for name, scripts in (('ours', None), ('stock', package)):
        out = f'{package}_{name}{tta}'
        draw = [] if tta or scripts else ['--show-dir', f'{package}_pictures']
        run('test.py', f'{package}.py', f'{package}/iter_3.pth', '--work-dir', out, '--out',
            f'{out}.pkl', *draw, *tta.split(), '--cfg-options',
            'test_dataloader.dataset.indices=2', package=scripts, cwd=trained)
    (figures, found), (expected_figures, expected) = (
        predictions(trained, f'{package}_{name}{tta}') for name in ('ours', 'stock'))
    assert len(found) == 2 and figures == expected_figures
    if tta and package != 'mmseg':  # the stock scripts keep the flipped image's metadata
        key = dict(mmpretrain='pred_score', mmdet='pred_instances')[package]
        assert_close(*([one[key] for one in results] for results in (found, expected)))
    else:
        assert same(found, expected)
    if not tta:
        pictures = [path for folder in trained.rglob(f'{package}_pictures')
                    for path in folder.rglob('*.*g')]
        assert len(pictures) == 2


def test_masks_are_dumped_as_mmdet_does(tmp_path):
    write_detector(tmp_path)
    options = ['--cfg-options', *DETECTOR_OPTIONS, 'test_dataloader.dataset.pipeline.1.scale='
               '(96,64)', 'train_cfg.max_epochs=1', 'model.test_cfg.rcnn.score_thr=0.']
    run('train.py', 'detector.py', '--work-dir', 'out', *options, cwd=tmp_path)
    losses = [record['loss'] for record in records(tmp_path / 'out') if 'loss' in record]
    assert losses and np.isfinite(losses).all()
    run('test.py', 'detector.py', 'out/epoch_1.pth', '--work-dir', 'tested', '--out',
        'found.pkl', *options, cwd=tmp_path)
    assert 'coco/segm_mAP' in metrics(tmp_path / 'tested')
    found = load(tmp_path / 'found.pkl')[0]['pred_instances']
    assert len(found['masks']) == len(found['scores']) > 0
    assert found['masks'][0]['size'] == [64, 96]


def test_resume_and_scaled_lr(trained):
    log = run('train.py', 'mmdet.py', '--work-dir', 'more', '--resume', 'mmdet/iter_3.pth',
              '--auto-scale-lr', '--cfg-options', 'train_cfg.max_iters=4',
              'auto_scale_lr.base_batch_size=16', cwd=trained)
    assert 'resumed epoch: 0, iter: 3' in log
    assert 'Scaling the original LR by 0.125' in log  # 2 images of 16
    assert (trained / 'more/iter_4.pth').exists() and not (trained / 'more/iter_3.pth').exists()


def with_bfloat16():
    """Makes a CPU one with instructions for bfloat16, and no GPU."""
    from mmrest.engine import cpu_amp
    cpu_amp.cpu_has_bfloat16, cpu_amp.get_device = lambda: True, lambda: 'cpu'


def test_amp_on_a_cpu(trained):
    process = Run(trained, 'mmdet.py', '--work-dir', 'amp', '--amp', fate=with_bfloat16)
    assert process.wait() == 0, process.text()[-3000:]
    assert 'CpuAmpOptimWrapper' in (trained / 'amp/mmdet.py').read_text()
    first, found = (records(trained / name)[0]['loss'] for name in ('mmdet', 'amp'))
    assert found != first and found == pytest.approx(first, rel=0.02)  # 8 bits


def test_the_first_lines_are_numbers_and_the_last_ones_test_the_best(tmp_path):
    """Of a run that was resumed after its best validation, too, in a folder with a space."""
    folder = tmp_path / 'two words'
    folder.mkdir()
    with write_classifier(folder).open('a') as config:
        config.write('test_dataloader, test_evaluator, test_cfg = '
                     'val_dataloader, val_evaluator, dict()')
    text = run('train.py', 'classifier.py', '--work-dir', 'out', '--cfg-options',
               'train_cfg.max_epochs=2', cwd=folder)
    best, figures, command = text.splitlines()[-3:]
    record, = (record for record in records(folder / 'out') if 'accuracy/top1' in record)
    assert best.endswith(f'Best checkpoint: {folder}/out/best_accuracy_top1_epoch_2.pth')
    assert figures.endswith(f'Its figures: accuracy/top1 {record["accuracy/top1"]:.4g}')
    *_, log = sorted((folder / 'out').glob('*/*.log'))
    for words in ('Config:', 'System environment:', 'Hooks will be executed'):
        assert words in log.read_text() and words not in text
    text = run('train.py', 'classifier.py', '--work-dir', 'out', '--resume', '--cfg-options',
               'train_cfg.max_epochs=3', 'train_cfg.val_interval=100', cwd=folder)
    assert 'resumed epoch: 2' in text
    assert [line.partition('INFO - ')[2] for line in text.splitlines()[-3:]] == [
        line.partition('INFO - ')[2] for line in (best, figures, command)]
    python, script, *args = shlex.split(re.sub('.*Test it: ', '', command))
    assert (python, Path(script), args[0]) == ('python', ROOT / 'tools/test.py',
                                               'out/classifier.py')
    run('test.py', *args, '--work-dir', 'tested', cwd=folder)
    assert metrics(folder / 'tested')['accuracy/top1'] == record['accuracy/top1']


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('launch, options, words', [
    ([], ['--amp', *SMALL], 'AmpOptimWrapper'),
    (['-m', 'torch.distributed.run', '--standalone'],
     ['--launcher', 'pytorch', *SMALL, 'sync_bn=torch'], 'SyncBatchNorm'),
])
def test_amp_and_sync_bn(coco, launch, options, words):
    """Both refuse a CPU; SyncBN needs a launcher, too."""
    command = [sys.executable, *launch, ROOT / 'tools/train.py', CONFIG]
    done = subprocess.run(
        [*command, '--work-dir', 'gpu', *options], cwd=coco, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    log = ''.join(path.read_text() for path in (coco / 'gpu').glob('*/*.log'))
    assert words in log and (coco / 'gpu/epoch_1.pth').exists()


@pytest.mark.parametrize('package, compiled', [
    ('mmpretrain', 'ImageClassifier.train_step'), ('mmdet', 'ResT._call_impl')])
def test_compile(package, compiled, trained, tools, monkeypatch):
    """A classifier as a whole, of others the backbone, whose parameters keep their names."""
    import train
    called, calls = [], []
    monkeypatch.setattr(torch, 'compile', lambda function, **kwargs: called.append(
        f'{type(function.__self__).__name__}.{function.__name__}') or (
            lambda *args, **kwargs: calls.append(1) or function(*args, **kwargs)))
    monkeypatch.chdir(trained)
    monkeypatch.setattr(sys, 'argv', [
        'train.py', f'{package}.py', '--compile', '--work-dir', f'{package}_compiled'])
    train.main()
    assert called == [compiled] and len(calls) >= 3
    states = [content(trained / f'{package}{name}/iter_3.pth') for name in ('', '_compiled')]
    assert same(*states), distance(*states)


def test_mim_finds_our_models(tmp_path):
    mim('search', 'mmrest', '--json', 'found.json', cwd=tmp_path)
    found = json.loads((tmp_path / 'found.json').read_text())
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('*.py')
               if '_base_' not in path.parts and 'digits' not in path.stem}
    assert set(found['config'].values()) == configs


@pytest.mark.parametrize('args, words', [
    (['train.py', CONFIG], 'needs data/coco/annotations/instances_train2017.json, '),
    (['train.py', 'mmdet.py', '--cfg-options',
      'train_dataloader.dataset.ann_file=annotations/other.json'],
     'needs data/digits/annotations/other.json, which cannot be found'),
    (['train.py', 'mmdet.py', '--cfg-options', 'batch_size=4'],
     'Edit it there, or take test_dataloader.batch_size=4 or train_dataloader.batch_siz'),
    (['train.py', 'mmdet.py', '--cfg-options', 'nonsense=4'], 'there, or take another option'),
    (['train.py', 'mmdet.py', '--auto-scale-lr', '--cfg-options', 'auto_scale_lr=None'],
     'needs auto_scale_lr.base_batch_size, which mmdet.py does not set'),
    (['test.py', 'mmdet.py', 'mmdet/iter_3.pth', '--show-dir', 'x', '--cfg-options',
      'default_hooks.visualization=None'],
     'need default_hooks.visualization in the config'),
    (['test.py', 'no.py', 'no.pth'], "No such file or directory: 'no.py'"),
    (['test.py', 'mmdet.py', 'no.pth'], "checkpoint='no.pth': no such file"),
])
def test_what_is_missing_is_said_in_one_sentence(args, words, trained):
    """And nothing is written."""
    before = set(trained.iterdir())
    script, *args = args
    process = Run(trained, *args, script=ROOT / 'tools' / script)
    assert process.wait() == 1
    line, = process.text().strip().splitlines()
    assert words in line and set(trained.iterdir()) - before == {process.log}


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools')


@pytest.mark.parametrize('named, files, expected', [
    ('epoch_2.pth', ['epoch_2.pth', 'epoch_3.pth'], 'epoch_2.pth'),
    ('', ['epoch_9.pth', 'epoch_10.pth', 'best_acc_epoch_10.pth', 'epoch_11.pth.partial'],
     'epoch_10.pth'),
    ('epoch_1.pth', ['epoch_2.pth'], 'epoch_2.pth'),  # max_keep_ckpts=1
    (None, ['epoch_1.pth'], 'epoch_1.pth'),
    (None, [], None),
    ('gone.pth', [], FileNotFoundError),
])
def test_what_resume_takes(named, files, expected, tools, tmp_path, capsys):
    from train import find_checkpoint
    for step, name in enumerate(files):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (step, step))
    if named is not None:
        (tmp_path / 'last_checkpoint').write_text(named and str(tmp_path / named))
    if expected is FileNotFoundError:
        with pytest.raises(expected, match='no checkpoint to resume .* remove .*last_che'):
            find_checkpoint(str(tmp_path))
        return
    assert find_checkpoint(str(tmp_path)) == (expected and str(tmp_path / expected))
    assert ('resuming from' in capsys.readouterr().out) == (named != expected)


REMOTE = dict(backend='petrel', path_mapping={'data/': 's3://bucket/data/'})


@pytest.mark.parametrize('dataset, paths', [
    (dict(data_root='d/', ann_file='a.json', data_prefix=dict(img='t/')), ['d/a.json', 'd/t/']),
    (dict(data_root='d', data_prefix='train'), ['d/train']),
    (dict(data_root='d'), ['d/']),
    (dict(ann_file='s3://a.json', data_root='d/', backend_args=None), ['d/']),
    (dict(data_root='s3://d/', ann_file='a.json'), []),
    (dict(data_root='data/', ann_file='a.json', backend_args=REMOTE), []),
    (dict(data_root='data/', ann_file='a.json', file_client_args=REMOTE), []),
    (dict(data_root='data/', ann_file='a.json', backend_args=dict(backend='local')),
     ['data/a.json', 'data/']),
    (dict(data_root='d', ann_file=['a.json', 'b.json'], data_prefix=dict(img=['a', 'b'])), []),
    (dict(data_root=['a', 'b']), []),
    (dict(data_root='d', data_prefix='train', pipeline=[
        dict(type='LoadImageFromFile', backend_args=dict(backend='lmdb', db_path='x'))]), []),
])
def test_data_that_must_exist(dataset, paths, tools):
    from common import _local_paths
    assert list(_local_paths(Config(dict(dataset=dataset)).dataset)) == paths


PURE_PYTHON = '''
from mmengine.dataset import DefaultSampler
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, TestLoop, ValLoop
from mmpretrain import datasets, evaluation, models
from torch.optim import AdamW

from mmrest import ResT

default_scope = None
model = dict(
    type=models.ImageClassifier,
    data_preprocessor=dict(
        type=models.ClsDataPreprocessor, num_classes=10, mean=[128.], std=[64.]),
    backbone=dict(
        type=ResT, out_indices=(1, ), arch=dict(
            embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 1), sr_ratios=(8, 4))),
    neck=dict(type=models.GlobalAveragePooling),
    head=dict(type=models.LinearClsHead, num_classes=10, in_channels=16,
              loss=dict(type=models.CrossEntropyLoss)))
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=datasets.CustomDataset, data_root='data/digits/cls/val', indices=8,
        with_label=True, pipeline=[
            dict(type=datasets.LoadImageFromFile), dict(type=datasets.PackInputs)]))
test_dataloader = val_dataloader = train_dataloader
test_evaluator = val_evaluator = dict(type=evaluation.Accuracy)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-4))
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
'''


def test_pure_python_configs_and_the_address_of_a_checkpoint(trained):
    (trained / 'pure.py').write_text(PURE_PYTHON)
    run('train.py', 'pure.py', cwd=trained)
    address = (trained / 'work_dirs/pure/epoch_1.pth').as_uri()
    for tta in ([], ['--tta']):
        run('test.py', 'pure.py', address, '--out', 'pure.pkl', *tta, cwd=trained)
        assert len(load(trained / 'pure.pkl')) == 8
    run('infer.py', 'pure.py', address, 'data/digits/cls/val/0', cwd=trained)
    assert len(list((trained / 'outputs/predictions').iterdir())) == 36


@pytest.mark.parametrize('kind, scope, package', [
    ('RetinaNet', 'mmdet', 'mmdet'), ('mmdet.RetinaNet', None, 'mmdet'),
    ('mmdet.RetinaNet', 'mmpose', 'mmpose'), ('RetinaNet', None, 'mmdet')])
def test_which_package_a_config_is_for(kind, scope, package):
    assert package_of(Config(dict(model=dict(type=kind), default_scope=scope))) == package


@pytest.mark.parametrize('classes, words', [
    (('kat', 'dog'), 'kat: classes of the config that the categories do not have'),
    (('dog', 'cat'), 'cat, dog: MMDetection numbers the classes in the order of the file'),
    (('cat', 'dog'), ''), (('dog', ), ''), ('names.txt', '')])
def test_classes_of_a_config(classes, words, tools, tmp_path, monkeypatch, capsys):
    from common import check_data
    monkeypatch.chdir(tmp_path)
    Path('names.txt').write_text('cat\ndog\n')
    write_coco2017(tmp_path, num_images=2)
    loaders = {f'{name}_dataloader': dict(dataset=dict(
        type='CocoDataset', metainfo=dict(classes=classes),
        ann_file=f'data/coco/annotations/instances_{name}2017.json'))
        for name in ('train', 'val')}
    with pytest.raises(SystemExit, match='2 errors in the data: correct them before') if words \
            else contextlib.nullcontext():
        check_data(Config(loaders), *loaders)
    said, *findings = capsys.readouterr().out.splitlines()
    assert 'instances_val2017.json in ' in said and '--no-check leaves this out' in said
    assert len(findings) == (2 if words else 0) and all(words in line for line in findings)
