"""The loss on the validation data, beside a calculation without mm's pipelines."""
import json
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from torch.nn import functional as F
from torch.testing import assert_close

from mmrest.apis import build_model, read_config
from mmrest.engine import ValLossHook

from ..tiny_data import DIGITS, write_digits
from ..tools.test_distributed import two_processes
from ..torture.training import Run
from .val_loss_ranks import VALUES, Model, stand_in, validate

MEAN, STD = (np.array(values, np.float32) for values in (
    (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
# Pictures are resized before their annotations are loaded, as in mm's own validation.
RESIZE = dict(type='Resize', scale=(96, 96))
STEPS = dict(
    mmpretrain=[dict(type='PackInputs')],
    mmdet=[RESIZE, dict(type='LoadAnnotations', with_bbox=True),
           dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape',
                                                 'scale_factor'))],
    mmseg=[RESIZE, dict(type='LoadAnnotations'), dict(type='PackSegInputs')])
CONFIG = '''
_base_ = '{}.py'
custom_hooks = [dict(type='ValLossHook')]
train_cfg = dict(max_iters=3, val_interval=1)
val_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), *{}]))
'''


def pixels(path, side=None):
    """(1, 3, H, W), normalised."""
    image = cv2.imread(str(path))
    image = cv2.resize(image, (side, side)) if side else image
    return torch.from_numpy((image[..., ::-1] - MEAN) / STD).permute(2, 0, 1)[None].float()


def classifier(model, folder):
    files = sorted((folder / 'data/digits/cls/val').rglob('*.jpg'))
    assert len(files) == 360  # batches of 64, and one of 40
    features = model.extract_feat(torch.cat([pixels(path) for path in files]))
    labels = torch.tensor([int(path.parent.name) for path in files])
    return F.cross_entropy(model.head.fc(features[-1]), labels)


def detector(model, folder):
    from mmdet.structures import DetDataSample
    data = folder / 'data/digits'
    truth = json.loads((data / 'annotations/instances_val.json').read_text())
    samples = []
    for image in truth['images']:
        own = [a for a in truth['annotations'] if a['image_id'] == image['id']]
        x, y, w, h = torch.tensor([a['bbox'] for a in own]).unbind(1)
        meta = dict(img_shape=(96, 96), pad_shape=(96, 96), batch_input_shape=(96, 96))
        samples.append(DetDataSample(metainfo=meta, gt_instances=InstanceData(
            bboxes=torch.stack([x, y, x + w, y + h], 1) * 96 / 128,
            labels=torch.tensor([a['category_id'] - 1 for a in own]))))
    images = torch.cat([pixels(data / 'val' / i['file_name'], 96) for i in truth['images']])
    losses = model.loss(images, samples)
    return sum(sum(parts) for parts in losses.values())


def segmenter(model, folder):
    """Padded to 128 x 128, as in training, where no class counts."""
    data, losses = folder / 'data/digits', []
    weight = torch.tensor([0.1] + [1.] * 10)  # of the config
    for path in sorted((data / 'val').iterdir()):
        image = F.pad(pixels(path, 96), (0, 32, 0, 32))
        scores = model.encode_decode(image, [dict(img_shape=(128, 128))])
        known = cv2.imread(str(data / f'semantic/val/{path.stem}.png'), cv2.IMREAD_GRAYSCALE)
        known = cv2.resize(known, (96, 96), interpolation=cv2.INTER_NEAREST)
        known = F.pad(torch.from_numpy(known)[None].long(), (0, 32, 0, 32), value=255)
        losses.append(F.cross_entropy(scores, known, weight, ignore_index=255))
    return torch.stack(losses).mean()


BY_HAND = dict(mmpretrain=classifier, mmdet=detector, mmseg=segmenter)


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp('val_loss')
    write_digits(folder)
    return folder


@pytest.mark.parametrize('package', DIGITS)
def test_the_same_as_by_hand(package, digits, monkeypatch):
    config = digits / f'{package}_loss.py'
    config.write_text(CONFIG.format(package, STEPS[package]))
    run = Run(digits, config.name, '--work-dir', package)
    assert run.wait() == 0, run.text()[-3000:]
    scalars, = (digits / package).glob('*/vis_data/scalars.json')
    logged = [json.loads(line) for line in scalars.read_text().splitlines()]
    logged = [record['val_loss'] for record in logged if 'val_loss' in record]
    assert len(set(logged)) == 3
    monkeypatch.chdir(digits)
    model = build_model(read_config(config.name), digits / package / 'iter_3.pth').eval()
    with torch.no_grad():
        want = float(BY_HAND[package](model, digits))
    assert logged[-1] == pytest.approx(want, rel=1e-5)
    assert logged[0] != pytest.approx(want, rel=5e-5)  # nor is it the mean of all three


def test_two_processes_with_unequal_shares(tmp_path):
    """And with unequal numbers of batches, in each of which the processes meet."""
    codes, output = two_processes(
        Path(__file__).with_name('val_loss_ranks.py'), tmp_path / 'rank', cwd=tmp_path)
    assert codes == [0, 0], output
    first, second = (json.loads((tmp_path / f'rank{i}.json').read_text()) for i in range(2))
    assert first == second
    mean = 3 * sum(VALUES) / 5
    for metrics in first[:3]:
        assert list(metrics) == ['first', 'val_loss', 'val_loss_a', 'val_loss_b']
        assert metrics == pytest.approx(dict(
            first=0, val_loss=2 * mean + 2, val_loss_a=mean, val_loss_b=mean + 2), rel=1e-6)
    assert first[3] == 'ValLossHook: 2 processes cannot share 1 images of val_dataloader'


def states():
    numpy = np.random.get_state()
    return random.getstate(), tuple(numpy[1]), numpy[2], torch.get_rng_state().tolist()


class Noisy(Model):
    """Draws numbers of every kind, and has statistics to change."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(1)

    def forward(self, inputs, data_samples, mode):
        noise = random.random() + np.random.rand() + torch.rand(())
        return dict(loss=self.norm(torch.stack(inputs)).mean() + noise)


def test_random_numbers_and_statistics_stay_and_the_noise_is_always_the_same():
    model = Noisy()
    before, buffers = states(), {k: v.clone() for k, v in model.state_dict().items()}
    first = validate(model, 5, 2)
    assert states() == before
    for name, value in model.state_dict().items():
        assert_close(value, buffers[name], rtol=0, atol=0)
    random.random(), np.random.rand(), torch.rand(())
    assert states() != before
    assert validate(model, 5, 2) == first and first['val_loss'] > 0


def test_the_config_is_not_changed():
    runner = stand_in(Model(), 5, 2)
    runner.cfg.val_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'), dict(type='Resize'), dict(type='LoadAnnotations')]
    before = str(runner.cfg)
    hook = ValLossHook()
    hook.before_val(runner)
    assert str(runner.cfg) == before
    assert [step['type'] for step in hook.loader.dataset.pipeline] == [
        'LoadImageFromFile', 'LoadAnnotations', 'Resize']
