"""Training that is killed, and disks that fill up."""
import signal
import time

import cv2
import mmengine
import numpy as np
import pytest
from mmengine.utils import digit_version

from . import tiny_coco
from .training import (
    ARCH,
    ROOT,
    DieAt,
    DieNaming,
    FilesAtMost,
    Run,
    check_whole,
    content,
    distance,
    same,
)

EPOCHS = 8
CLASSIFIER = f'''
_base_ = {str(ROOT / 'configs/_base_/runtime/mmpretrain.py')!r}
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
    """Write a config, and 20 images of 2 classes: bright on the left or on the right."""
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


@pytest.fixture
def long_version(many):
    if not many(False, True):
        pytest.skip('long version only: --torture; tests/engine has the short one')


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """The folder with the config, and the final state of a run that is not interrupted."""
    folder = tmp_path_factory.mktemp('training')
    config = classifier(folder)
    run = Run(folder, config, '--work-dir', 'undisturbed')
    assert run.wait() == 0, run.text()[-3000:]
    return folder, content(folder / f'undisturbed/epoch_{EPOCHS}.pth')


def resume(folder, name, *options, fate=None):
    """Run to the end, or until ``fate`` ends it; returns the exit code and the output."""
    run = Run(folder, 'classifier.py', '--work-dir', name, '--resume', *options, fate=fate)
    return run.wait(), run.text()


def end(folder, name):
    return content(folder / name / f'epoch_{EPOCHS}.pth')


def whole(folder):
    """Check all checkpoints in a folder; returns the steps of those that can be resumed."""
    for path in folder.glob('*.pth'):
        check_whole(path)
    return sorted(int(path.stem.split('_')[1]) for path in folder.glob('epoch_*.pth'))


def test_seeds_alone_decide(undisturbed, long_version):
    """Otherwise, equal results after a kill would prove nothing."""
    folder, expected = undisturbed
    code, _ = resume(folder, 'seed', '--cfg-options', 'randomness.seed=1')
    assert code == 0
    assert distance(end(folder, 'seed'), expected) > 1e-3


def test_killed_at_random_moments(undisturbed, many):
    folder, expected = undisturbed
    delays = np.random.default_rng(0)
    kills, resumed, chains, wanted = 0, 0, 0, many(2, 20)
    while kills < wanted:
        name = f'random_{chains}'
        while True:
            run = Run(folder, 'classifier.py', '--work-dir', name, '--resume')
            # The first kill comes when there is a checkpoint to resume from.
            moment = 'Checkpoints will be saved' if kills else 'Saving checkpoint at 2 epochs'
            assert run.until(moment), run.text()[-3000:]
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
    print(f'{kills} kills at random moments in {chains} runs; {resumed} of the starts '
          'resumed from a checkpoint')
    assert resumed


def test_killed_while_a_checkpoint_is_written(undisturbed, long_version):
    """Before and after the rename, in the middle of writing, and at the best checkpoint."""
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


def test_a_full_disk_costs_no_earlier_checkpoint(undisturbed, long_version):
    folder, expected = undisturbed
    name, one = 'full', ('--cfg-options', 'default_hooks.checkpoint.max_keep_ckpts=1')
    code, _ = resume(folder, name, *one, fate=DieAt('/epoch_3.pth', 1, after=False))
    assert code == -signal.SIGKILL and whole(folder / name) == [2]
    before = (folder / name / 'epoch_2.pth').read_bytes()
    code, log = resume(folder, name, *one, fate=FilesAtMost(len(before) // 2, kill=False))
    assert code == 1 and '[Errno 27] File too large' in log
    assert whole(folder / name) == [2]
    assert (folder / name / 'epoch_2.pth').read_bytes() == before
    assert not list((folder / name).glob('epoch_3*'))
    code, log = resume(folder, name, *one)
    assert code == 0 and 'resumed epoch: 2' in log
    assert whole(folder / name) == [EPOCHS]
    assert same(end(folder, name)['state_dict'], expected['state_dict'])


def test_killed_while_the_checkpoint_is_named(undisturbed, long_version):
    """MMEngine writes last_checkpoint in place: it is empty for a moment."""
    folder, expected = undisturbed
    name = 'naming'
    code, log = resume(folder, name, fate=DieNaming(1, kill=True))
    assert code == -signal.SIGKILL and whole(folder / name) == [1]
    assert 'Auto resumed from the latest checkpoint None' in log
    assert (folder / name / 'last_checkpoint').read_text() == ''

    code, log = resume(folder, name, fate=DieNaming(1, kill=False))
    assert code == 1 and 'No space left on device' in log
    assert 'resuming from naming/epoch_1.pth' in log and 'resumed epoch: 1' in log
    assert (folder / name / 'last_checkpoint').read_text() == ''

    code, log = resume(folder, name)
    assert code == 0 and 'resumed epoch: 2' in log
    assert same(end(folder, name), expected)


ITERATIONS = f'''
_base_ = 'classifier.py'
train_dataloader = dict(sampler=dict(type='InfiniteSampler'))
train_cfg = dict(_delete_=True, by_epoch=False, max_iters={5 * EPOCHS}, val_interval=10)
param_scheduler = dict(T_max={5 * EPOCHS}, by_epoch=False)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5))
log_processor = dict(by_epoch=False)
'''
WORKERS = 'train_dataloader.num_workers=2'
PERSISTENT = 'train_dataloader.persistent_workers=True'
OLD = pytest.mark.xfail(
    digit_version(mmengine.__version__) < digit_version('0.10.12'), strict=True,
    reason='this mmengine loads the images that it skips, and draws random numbers for them')
DRAWS = pytest.mark.xfail(
    strict=True, reason="mmengine's data workers start with the same random numbers again")


@pytest.mark.parametrize('config, options, third', [
    pytest.param('iterations.py', [], '/iter_15.pth', marks=OLD),
    ('classifier.py', [WORKERS], '/epoch_3.pth'),
    pytest.param('classifier.py', [WORKERS, PERSISTENT], '/epoch_3.pth', marks=DRAWS),
    ('detector.py', tiny_coco.OPTIONS, '/epoch_2.pth'),
])
def test_loops_and_workers(config, options, third, tmp_path, long_version):
    """A run that is killed at the rename of the third checkpoint."""
    classifier(tmp_path)
    (tmp_path / 'iterations.py').write_text(ITERATIONS)
    tiny_coco.write(tmp_path)
    args = (config, '--cfg-options', 'log_level=INFO', *options)
    run = Run(tmp_path, *args, '--work-dir', 'whole')
    assert run.wait() == 0, run.text()[-3000:]
    run = Run(tmp_path, *args, '--work-dir', 'killed', fate=DieAt(third, 1, after=False))
    assert run.wait() == -signal.SIGKILL, run.text()[-3000:]
    run = Run(tmp_path, *args, '--work-dir', 'killed', '--resume')
    assert run.wait() == 0 and 'resumed epoch' in run.text(), run.text()[-3000:]
    last = (tmp_path / 'whole/last_checkpoint').read_text().rpartition('/')[2]
    ends = [content(tmp_path / name / last) for name in ('whole', 'killed')]
    assert same(*ends), f'the weights differ by up to {distance(*ends):.2g}'
