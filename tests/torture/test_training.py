"""Training that is killed, on disks that fill up and with checkpoints that break."""
import re
import signal
import time

import cv2
import numpy as np
import pytest
import torch

from mmrest.hooks.checkpoint import _fault

from .training import ARCH, ROOT, DieAt, FilesAtMost, Run, content, distance, same

EPOCHS = 8
CLASSIFIER = f'''
_base_ = {str(ROOT / 'configs/_base_/mmpretrain_runtime.py')!r}
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResT', arch={ARCH}, out_indices=(1, ), drop_path_rate=0.3),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=16, topk=(1, ),
              loss=dict(type='CrossEntropyLoss')))
data_preprocessor = dict(mean=[127.] * 3, std=[64.] * 3, num_classes=2)
dataset = dict(
    type='CustomDataset', data_root='images', with_label=True,
    serialize_data=False, pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackInputs')])
train_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dataset)
val_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dataset)
val_evaluator = dict(type='Accuracy', topk=(1, ))
train_cfg = dict(by_epoch=True, max_epochs={EPOCHS}, val_interval=2)
val_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
param_scheduler = dict(type='CosineAnnealingLR', T_max={EPOCHS})
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(max_keep_ckpts=2, save_best='auto'))
randomness = dict(seed=0)
'''


def classifier(folder):
    """A config and 20 images of 2 classes, bright on the left or on the right."""
    generator = np.random.default_rng(0)
    for label, side in enumerate((slice(0, 16), slice(16, 32))):
        (folder / f'images/{label}').mkdir(parents=True)
        for i in range(10):
            image = generator.integers(0, 200, (32, 32, 3), np.uint8)
            image[:, side] += 55
            cv2.imwrite(str(folder / f'images/{label}/{i}.png'), image)
    config = folder / 'classifier.py'
    config.write_text(CLASSIFIER)
    return config


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """The folder with the config, and what a run that nobody disturbs ends with."""
    folder = tmp_path_factory.mktemp('training')
    config = classifier(folder)
    run = Run(folder, config, '--work-dir', 'undisturbed')
    assert run.wait() == 0, run.text()[-3000:]
    return folder, content(folder / f'undisturbed/epoch_{EPOCHS}.pth')


def resume(folder, name, *options, fate=None):
    """Run to the end, or to what fate has in store: its exit code and what it printed."""
    run = Run(folder, 'classifier.py', '--work-dir', name, '--resume', *options, fate=fate)
    return run.wait(), run.text()


def end(folder, name):
    return content(folder / name / f'epoch_{EPOCHS}.pth')


def whole(folder):
    """The steps of the checkpoints there, all of which load."""
    for path in folder.glob('*.pth'):
        assert _fault(path) is None
        torch.load(path, weights_only=False)
    return sorted(int(path.stem.split('_')[1]) for path in folder.glob('epoch_*.pth'))


def test_seeds_alone_decide(undisturbed):
    """Else, equal ends after a kill would say nothing."""
    folder, expected = undisturbed
    code, _ = resume(folder, 'seed', '--cfg-options', 'randomness.seed=1')
    assert code == 0
    assert distance(end(folder, 'seed'), expected) > 1e-3


def test_killed_at_random_moments(undisturbed, many, record_property):
    folder, expected = undisturbed
    delays = np.random.default_rng(0)
    kills, resumed, chains, wanted = 0, 0, 0, many(2, 20)
    while kills < wanted:
        name = f'random_{chains}'
        while True:
            run = Run(folder, 'classifier.py', '--work-dir', name, '--resume')
            assert run.until('Checkpoints will be saved'), run.text()[-3000:]
            time.sleep(delays.uniform(0, 2))
            if kills < wanted:
                run.process.kill()
            code = run.wait()
            resumed += 'resumed epoch' in run.text()
            if code == 0:
                break
            assert code == -signal.SIGKILL, run.text()[-3000:]
            kills += 1
            whole(folder / name)
        assert same(end(folder, name), expected), distance(end(folder, name), expected)
        chains += 1
    print(f'{kills} kills at random moments survived, in {chains} runs; {resumed} starts '
          'went on from a checkpoint')
    assert resumed


def test_killed_while_a_checkpoint_is_written(undisturbed):
    """After the rename, in the middle of writing, before the rename, and the best one."""
    folder, expected = undisturbed
    name = 'writing'
    code, _ = resume(folder, name, fate=DieAt('top1_epoch_2.pth', 1, after=False))
    assert code == -signal.SIGKILL and whole(folder / name) == [1, 2]

    code, log = resume(folder, name, fate=DieAt('/epoch_3.pth', 1, after=True))
    assert code == -signal.SIGKILL and 'resumed epoch: 2' in log
    assert whole(folder / name) == [1, 2, 3]
    assert (folder / name / 'last_checkpoint').read_text().endswith('epoch_2.pth')

    half = (folder / name / 'epoch_3.pth').stat().st_size // 2
    code, log = resume(folder, name, fate=FilesAtMost(half, kill=True))
    assert code == -signal.SIGXFSZ and 'resumed epoch: 2' in log
    assert (folder / name / 'epoch_3.pth.partial').stat().st_size == half
    assert whole(folder / name) == [1, 2, 3]

    code, log = resume(folder, name)
    assert code == 0 and 'resumed epoch: 2' in log
    assert same(end(folder, name), expected)
    assert not list((folder / name).glob('*.partial'))


def test_a_full_disk_costs_no_earlier_checkpoint(undisturbed):
    folder, expected = undisturbed
    name, one = 'full', ('--cfg-options', 'default_hooks.checkpoint.max_keep_ckpts=1')
    code, _ = resume(folder, name, *one, fate=DieAt('/epoch_3.pth', 1, after=False))
    assert code == -signal.SIGKILL and whole(folder / name) == [2]
    before = (folder / name / 'epoch_2.pth').read_bytes()
    code, log = resume(folder, name, *one, fate=FilesAtMost(len(before) // 2, kill=False))
    assert code == 1 and 'OSError: [Errno 27] File too large' in log
    assert whole(folder / name) == [2]
    assert (folder / name / 'epoch_2.pth').read_bytes() == before
    assert not list((folder / name).glob('epoch_3*'))
    code, log = resume(folder, name, *one)
    assert code == 0 and 'resumed epoch: 2' in log
    assert whole(folder / name) == [EPOCHS]
    assert same(end(folder, name)['state_dict'], expected['state_dict'])


def test_a_broken_checkpoint_is_named_and_passed_over(undisturbed):
    folder, expected = undisturbed
    name = 'broken'
    code, _ = resume(folder, name, fate=DieAt('/epoch_4.pth', 1, after=False))
    assert code == -signal.SIGKILL and whole(folder / name) == [2, 3]
    last = folder / name / 'epoch_3.pth'
    last.write_bytes(last.read_bytes()[:-1000])
    code, log = resume(folder, name)
    assert code == 0
    assert re.search('WARNING - .*/epoch_3.pth is passed over: .*BadZipFile', log)
    assert 'resumed epoch: 2' in log
    assert same(end(folder, name), expected)
