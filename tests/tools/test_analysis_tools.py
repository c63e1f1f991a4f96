"""tools/analysis_tools: what the pictures show, FLOPs, images per second."""
import importlib
import re
import sys

import cv2
import mmpretrain
import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from mmrest import ResT, ResTV2
from mmrest.apis import as_picture, build_model, find_rest, read_config, read_image
from mmrest.errors import UserError
from mmrest.ops.emsa.reference import attention

from .conftest import ROOT

ARCH = dict(embed_dims=(8, 16, 16, 32), depths=(1, 1, 1, 2), num_heads=(1, 2, 4, 8),
            sr_ratios=(8, 4, 2, 1))
MODELS = dict(
    classifier=('classification/rest_lite_digits.py', dict(head=dict(in_channels=32))),
    classifier_v2=('classification/restv2_tiny_digits.py', dict(head=dict(in_channels=32))),
    detector=('retinanet/rest_lite_retinanet_digits.py',
              dict(neck=dict(in_channels=[16, 16, 32]))))
RESNET50 = mmpretrain.__path__[0] + '/.mim/configs/resnet/resnet50_8xb32_in1k.py'


@pytest.fixture
def tool(monkeypatch):
    """Imports a script from the folder."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools/analysis_tools'))
    return importlib.import_module


@pytest.fixture
def main(tool, monkeypatch, capsys):
    """Runs a script with arguments; returns what it prints."""
    def run(name, *args):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, args)])
        tool(name).main()
        return capsys.readouterr().out

    return run


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Images of 96 x 128 and 48 x 48, and each of MODELS: its config and its weights."""
    folder = tmp_path_factory.mktemp('analysis')
    rng = np.random.default_rng(0)
    for name, shape in (('image', (96, 128, 3)), ('square', (48, 48, 3))):
        cv2.imwrite(str(folder / f'{name}.png'), rng.integers(0, 255, shape, np.uint8))
    torch.manual_seed(0)
    backbone = dict(arch=dict(ARCH, _delete_=True), init_cfg=None)
    for name, (base, model) in MODELS.items():
        (folder / f'{name}.py').write_text(f"_base_ = {str(ROOT / 'configs' / base)!r}\n"
                                           f'model = {dict(model, backbone=backbone)}\n')
        torch.save(build(folder, name).state_dict(), folder / f'{name}.pth')
    return folder


def config(folder, name):
    return read_config(str(folder / f'{name}.py'))


def build(folder, name):
    return build_model(config(folder, name))


def test_the_image_is_the_output_of_the_test_pipeline(files):
    path = str(files / 'square.png')
    wanted = cv2.imread(path)[..., ::-1].copy()  # RGB
    model = build(files, 'classifier')
    picture, inputs = read_image(config(files, 'classifier'), model, path)
    np.testing.assert_array_equal(picture, wanted)
    assert inputs.shape == (1, 3, 48, 48)
    preprocessor = model.data_preprocessor
    shown = inputs[0] * preprocessor.std + preprocessor.mean
    assert_close(shown.permute(1, 2, 0), torch.tensor(wanted).float(),
                 rtol=0, atol=1e-3)


@pytest.mark.parametrize('image, shown', [
    (np.uint8([[3, 9]]), [3, 9]),  # as it is, (h, w)
    (np.float32([[[3.]], [[255.]]]), [3, 255]),
    (np.uint16([[0, 300, 30000]]), [0, 2, 255]),
    (np.float32([[-1., 0., 1.]]), [0, 127, 255]),
    (np.float32([[0., .5]]), [0, 255]),
    (np.zeros((1, 2, 2), np.uint16), [0, 0])])
def test_what_is_drawn_on_has_three_channels_of_8_bits(image, shown):
    picture = as_picture(image)
    assert picture.dtype == np.uint8 and picture.shape == (*image.shape[:2], 3)
    assert (picture.reshape(-1, 3) == np.array(shown)[:, None]).all()


def test_a_config_without_rest_is_named():
    with pytest.raises(UserError, match='Linear, has no ResT in it'):
        find_rest(torch.nn.Linear(1, 1))


@pytest.mark.parametrize('stage', [1, 2, 3, 4])
@pytest.mark.parametrize('kind', [ResT, ResTV2])
def test_attention_of_a_point_is_the_models_own(kind, stage, tool):
    """Its rows, normalised and multiplied by the values, give EMSA's output at the point.

    EMSAv2 adds the up-sampled values to it.
    """
    tool = tool('vis_attention')
    torch.manual_seed(stage)
    rest = kind(ARCH).double().eval()
    for parameter in rest.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    image = torch.randn(1, 3, 75, 110, dtype=torch.double)
    block = getattr(rest, f'stage{stage}')[-1].attn
    seen = []
    block.register_forward_hook(lambda _, args, out: seen.append((*args, out)))
    added = []
    if kind is ResTV2:
        block.up_norm.register_forward_hook(lambda _, args, out: added.append(out))
    found = tool.attention_of_point(rest, image, (40, 70), stage)
    (x, (H, W), out), = seen
    query = 40 * H // 75 * W + 70 * W // 110
    q, k, v = block.project(x, (H, W))
    h, M = q.shape[1], k.shape[2]
    assert found.shape[0] == h and found[0].numel() == M
    assert_close(found.sum((1, 2)), torch.ones(h, dtype=torch.double))
    weights = found.flatten(1)
    if block.normalize:
        one = torch.eye(M, dtype=torch.double).expand(1, h, M, M)
        whole = attention(q, k, one, *block.mixing(q), q.shape[-1]**-0.5, True, 1e-5)
        variance = attention(
            q, k, one, *block.mixing(q), q.shape[-1]**-0.5, False, 0.)
        variance = (variance - 1 / M).square().mean((-2, -1))[0]
        weights = (weights - 1 / M) * (variance + 1e-5).rsqrt()[:, None]
        assert_close(weights, whole[0, :, query])
    mixed = (weights[:, None] @ v[0]).flatten()  # (h, 1, d) -> (C,)
    mixed = mixed + sum(x[0, query] for x in added)
    assert_close(block.proj(mixed), out[0, query])


def test_attention_of_a_point_outside_is_refused(tool):
    tool = tool('vis_attention')
    rest = ResT('lite').eval()
    with pytest.raises(ValueError, match=r'point=\(64, 0\).*64 x 64'):
        tool.attention_of_point(rest, torch.zeros(1, 3, 64, 64), (64, 0), 1)
    with pytest.raises(ValueError, match='stage=5 must be from 1 to 4'):
        tool.attention_of_point(rest, torch.zeros(1, 3, 64, 64), (0, 0), 5)
    with pytest.raises(ValueError, match='block=2 must be from -2 to 1 in stage 1'):
        tool.attention_of_point(rest, torch.zeros(1, 3, 64, 64), (0, 0), 1, 2)


@pytest.mark.parametrize('name', ['classifier', 'classifier_v2'])
def test_flops_are_those_of_the_equations(name, files, tool):
    """torch's own counter on the reference backend, which computes the map by products."""
    cfg = config(files, name)
    parameters, layers, full = tool('count_flops').count(cfg, (75, 110))
    cfg.model.backbone.backend = 'reference'
    model = build_model(cfg).to('meta')
    assert parameters == sum(p.numel() for p in model.parameters())
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.empty(1, 3, 75, 110, device='meta'), mode='tensor')
    vectors = 0  # transform_conv's
    if name == 'classifier':
        heads = zip(ARCH['depths'], ARCH['num_heads'])
        vectors = sum(depth * h * h * (h + 1) for depth, h in heads if h > 1)
    assert full == counter.get_total_flops() // 2 - vectors
    products = counter.get_flop_counts()['Global'][torch.ops.aten.bmm] // 2
    assert layers == full - products > 0


def test_flops_of_a_resnet_are_the_published_ones(main):
    out = main('count_flops', RESNET50)
    assert ('25.557 M parameters, FLOPs 4.09 G in convolutions and linear layers, 4.09 G with '
            'attention') in out


@pytest.mark.parametrize('name, model, rows', [
    ('vis_attention', 'detector', [2, 3, 5, 9]), ('vis_features', 'detector', [4, 5]),
    ('vis_features', 'classifier', [2])])
def test_what_is_drawn(name, model, rows, tool, files, monkeypatch):
    tool = tool(name)
    saved = []
    monkeypatch.setattr(tool, 'save_rows', lambda path, rows, *_: saved.append(rows))
    args = [str(files / f'{model}.py'), str(files / f'{model}.pth')]
    tool.main([*args, str(files / 'image.png'), 'x.png'])
    assert [len(row) for row in saved[0]] == rows
    assert all(picture.std() > 0 for row in saved[0] for _, picture in row)
    with pytest.raises(SystemExit, match='nowhere.png'):
        tool.main([*args, 'nowhere.png', 'x.png'])


@pytest.mark.parametrize('channels, color_type', [(1, 'grayscale'), (4, 'unchanged')])
def test_images_of_other_channels(channels, color_type, files, tool, main, tmp_path):
    path, image = tmp_path / 'config.py', tmp_path / 'image.png'
    path.write_text(f"""
_base_ = '{files}/detector.py'
model = dict(
    backbone=dict(in_channels={channels}),
    data_preprocessor=dict(mean=None, std=None, bgr_to_rgb=False))
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile', color_type='{color_type}'),
    dict(type='PackDetInputs', meta_keys=('img_shape', ))]))
""")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, channels), np.uint8)
    cv2.imwrite(str(image), pixels)
    cfg = read_config(str(path))
    model = build_model(cfg)
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    picture, inputs = read_image(cfg, model, str(image))
    shown = pixels.repeat(3, axis=2) if channels == 1 else pixels[..., 2::-1]
    np.testing.assert_array_equal(picture, shown)
    assert_close(inputs[0], torch.tensor(pixels).permute(2, 0, 1).float())
    args = [str(path), str(tmp_path / 'weights.pth'), str(image)]
    for name, *options in (('vis_features', ), ('vis_attention', '--stages', '1')):
        tool(name).main([*args, str(tmp_path / f'new/{name}.png'), *options])
        assert cv2.imread(str(tmp_path / f'new/{name}.png')).std() > 1
    parameters = sum(p.numel() for p in model.parameters())
    assert f' {parameters / 1e6:.3f} M' in main('count_flops', path, '--shape', 64, 64)
    out = main('measure_fps', path, '--shape', 64, 96, '--batch-size', 2, '--seconds', 0.1)
    found = re.search(r'at 2 x 64x96, .*: ([\d.]+) images/s \(median of \d+', out)
    assert float(found[1]) > 0
