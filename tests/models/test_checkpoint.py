import argparse
import hashlib
import io
import json
import logging
import os
import pickle
import random
import re
import struct
import subprocess
import sys

import numpy.testing
import pytest
import torch
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import load_checkpoint

from mmrest import ResT, ResTV2
from mmrest.safe_reading import UnsafeCheckpointError, read_state_dict

from .. import golden

HEAD = ('head.weight', 'head.bias')
DETECTION_NORMS = tuple(f'norm{i}.{kind}' for i in (1, 2, 3) for kind in ('weight', 'bias'))


def classification_weights(arch='lite'):
    """A released classification file's state dict: a head, and no norm1 to norm3."""
    weights = golden.draw_weights(arch)
    return {name: value for name, value in weights.items() if name not in DETECTION_NORMS}


def published(path, arch='lite'):
    """As the published training code saves it."""
    args = argparse.Namespace(lr=5e-4, model=f'rest_{arch}', device='cuda')
    torch.save(
        dict(model=classification_weights(arch), args=args, epoch=299, optimizer={}), path)
    return path


def load(path, prefix=None, arch='lite', kind=ResT, **kwargs):
    cfg = dict(type='Pretrained', checkpoint=str(path))
    if prefix is not None:
        cfg['prefix'] = prefix
    model = kind(arch, init_cfg=cfg, **kwargs).double()
    model.init_weights()
    return model


@pytest.fixture
def log():
    """What the run's logger prints."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = MMLogger.get_instance('test_checkpoint')
    logger.addHandler(handler)
    yield stream
    logger.removeHandler(handler)


def check_loaded(model, weights=None):
    weights = weights or classification_weights()
    for name, value in model.state_dict().items():
        key = name.replace('norm4.', 'norm.') if name.startswith('norm4.') else name
        if key in weights:
            torch.testing.assert_close(value, weights[key], rtol=0, atol=0)
        elif name in DETECTION_NORMS:
            assert (value == name.endswith('weight')).all(), name
        else:
            raise AssertionError(f'{name} is nowhere in the file')


def test_published_file(tmp_path, log):
    path = published(tmp_path / 'rest_lite.pth')
    model = load(path)
    check_loaded(model)
    lines = [line for line in log.getvalue().splitlines() if 'loaded' in line]
    assert len(lines) == 1
    assert "ResT(arch='lite'): loaded 9,995,300 of 9,996,196 parameters from" in lines[0]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f'{path} (SHA-256 {digest}); missing' in lines[0]
    missing, unused = lines[0].split('missing')[1].split('not used:')
    assert all(name in missing for name in DETECTION_NORMS)
    assert unused.split(', ') == [f' {HEAD[0]}', HEAD[1]]


@pytest.mark.parametrize('wrap', [
    lambda weights: weights,
    lambda weights: {'state_dict': weights},
    lambda weights: {f'module.{name}': value for name, value in weights.items()},
], ids=['bare', 'state_dict', 'data_parallel'])
@pytest.mark.parametrize('legacy', [False, True])
def test_other_wrappings(wrap, legacy, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(
        wrap(classification_weights()), path, _use_new_zipfile_serialization=not legacy)
    check_loaded(load(path))


@pytest.mark.parametrize('prefix', [None, 'backbone.'])
def test_own_checkpoints_with_all_that_mmengine_saves_beside(prefix, tmp_path):
    source = ResT('lite').double()
    for p in source.parameters():
        torch.nn.init.normal_(p)
    state = {(prefix or '') + k: v for k, v in source.state_dict().items()}
    if prefix:
        state['neck.convs.0.weight'] = torch.zeros(1)
    history = HistoryBuffer()
    history.update(1.5)
    path = tmp_path / 'epoch_1.pth'
    torch.save(
        dict(
            meta=dict(epoch=1, cfg='model = ...', seed=torch.tensor(3).numpy()),
            state_dict=state,
            message_hub=dict(log_scalars={'train/loss': history}),
            optimizer=torch.optim.AdamW(source.parameters()).state_dict()), path)
    model = load(path, prefix)
    for name, value in source.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)


def test_fewer_stages_take_what_they_have(tmp_path, log):
    model = load(published(tmp_path / 'rest_lite.pth'), out_indices=(1, ))
    check_loaded(model)
    line = next(line for line in log.getvalue().splitlines() if 'loaded' in line)
    assert 'stage3.0.attn.q.weight' in line.split('not used:')[1]


def test_the_log_of_init_weights_names_every_parameter_that_was_loaded(tmp_path):
    """Also those whose mean is as before: zeros, ones."""
    path = tmp_path / 'weights.pth'
    weights = ResT('lite').state_dict()
    torch.save({k: v for k, v in weights.items() if not k.startswith('norm1.')}, path)
    model = ResT('lite', init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    infos = {}
    model._dump_init_info = lambda: infos.update(model._params_init_info)
    model.init_weights()
    for name, p in model.named_parameters():
        loaded = 'ResTWeights: load from' in infos[p]['init_info']
        assert loaded != name.startswith('norm1.'), name


@pytest.mark.parametrize('wrap', [lambda state: dict(model=state), lambda state: state])
def test_whole_models_refuse_a_published_file(wrap, tmp_path):
    """MMEngine's load_checkpoint, thus MMPretrain's get_model, would log and go on."""
    path = tmp_path / 'rest_lite.pth'
    torch.save(wrap(classification_weights()), path)
    model = torch.nn.ModuleDict(dict(backbone=ResT('lite'), head=torch.nn.Linear(512, 10)))
    with pytest.raises(ValueError, match='has the names of a published file. It belongs'):
        load_checkpoint(model, str(path), map_location='cpu')
    with pytest.raises(ValueError, match='has the names of a published file'):
        load_checkpoint(model.backbone, str(published(path)), map_location='cpu')
    model.load_state_dict(model.head.state_dict(), strict=False)  # a part, on purpose
    own = model.state_dict()
    torch.save(own, path)
    load_checkpoint(model, str(path))
    torch.testing.assert_close(model.state_dict(), own)


def test_init_weights_a_second_time_leaves_trained_weights_alone(tmp_path):
    model = load(published(tmp_path / 'rest_lite.pth'))
    model.stem.conv1.weight.data.fill_(7)
    model.init_weights()
    assert (model.stem.conv1.weight == 7).all()


def test_other_init_cfg_entries_are_applied_before(tmp_path):
    init_cfg = [
        dict(type='Pretrained', checkpoint=str(published(tmp_path / 'rest_lite.pth'))),
        dict(type='Constant', layer='LayerNorm', val=5., bias=6.)
    ]
    model = ResT('lite', init_cfg=init_cfg)
    model.init_weights()
    assert (model.norm1.weight == 5).all()  # not in the file
    torch.testing.assert_close(
        model.norm4.weight, classification_weights()['norm.weight'].float())
    assert [cfg['type'] for cfg in model.init_cfg] == ['Constant', 'ResTWeights']


class Head(torch.nn.Module):
    """As mmpretrain's LinearClsHead: one linear layer named fc."""

    def __init__(self, classes):
        super().__init__()
        self.fc = torch.nn.Linear(512, classes)


def test_head_of_a_published_classifier(tmp_path):
    path = published(tmp_path / 'rest_lite.pth')
    head = Head(1000).double()
    WEIGHT_INITIALIZERS.build(dict(type='ResTHead', checkpoint=str(path)))(head)
    weights = classification_weights()
    torch.testing.assert_close(head.fc.weight, weights['head.weight'], rtol=0, atol=0)
    torch.testing.assert_close(head.fc.bias, weights['head.bias'], rtol=0, atol=0)
    with pytest.raises(ValueError, match=r'\(1000, 512\).*\(10, 512\)'):
        WEIGHT_INITIALIZERS.build(dict(type='ResTHead', checkpoint=str(path)))(Head(10))


# Published files of ResTv2


def save_v2(layout, path, arch='tiny'):
    """As the authors' classification, segmentation (MMSegmentation) and detection code does."""
    weights = golden.draw_weights(arch, 'restv2')
    if layout == 'classification':
        weights = {k: v for k, v in weights.items() if not k.startswith('norm_')}
        torch.save(dict(model=weights, args=argparse.Namespace(model='restv2_tiny')), path)
        return None
    weights = {k: v for k, v in weights.items() if not k.startswith(('norm.', 'head.'))}
    if layout == 'segmentation':
        state = {f'backbone.{k}': v for k, v in weights.items()}
        torch.save(dict(state_dict=dict(state, **{'decode_head.x': torch.zeros(1)})), path)
        return 'backbone.'
    names = {k: re.sub('^(norm_.)', r'\1.0', k) for k in weights}
    state = {f'backbone.bottom_up.{names[k]}': v for k, v in weights.items()}
    torch.save(dict(model=state), path)
    return 'backbone.bottom_up.'


@pytest.mark.parametrize('layout', ['classification', 'segmentation', 'detection'])
def test_published_files_of_restv2(layout, tmp_path, log):
    path = tmp_path / 'restv2_tiny.pth'
    prefix = save_v2(layout, path)
    model = load(path, prefix, 'tiny', ResTV2)
    weights = golden.draw_weights('tiny', 'restv2')
    for name, value in model.state_dict().items():
        if layout == 'classification' and name.startswith('norm_'):
            assert (value == name.endswith('weight')).all(), name
        else:
            torch.testing.assert_close(value, weights[name], rtol=0, atol=0)
    line, = (line for line in log.getvalue().splitlines() if 'loaded' in line)
    if layout == 'classification':  # a classifier's norm is another one than norm_4
        assert "ResTV2(arch='tiny'): loaded 29,664,240 of 29,667,120 parameters" in line
        missing, unused = line.split('not used:')
        assert 'norm_4.weight, norm_4.bias' in missing
        assert unused == ' norm.weight, norm.bias, head.weight, head.bias'
    else:
        assert 'loaded 29,667,120 of 29,667,120 parameters' in line and 'not used: none' in line


def test_a_classifier_of_restv2_takes_the_norm_of_one(tmp_path):
    save_v2('classification', tmp_path / 'restv2_tiny.pth')
    model = load(tmp_path / 'restv2_tiny.pth', None, 'tiny', ResTV2, out_indices=(3, ))
    want = golden.draw_weights('tiny', 'restv2')['norm.weight']
    torch.testing.assert_close(model.norm_4.weight.detach(), want, rtol=0, atol=0)


def test_files_of_another_restv2_are_refused_and_named(tmp_path):
    path = tmp_path / 'weights.pth'
    save_v2('classification', path)
    for kind, arch in ((ResTV2, 'small'), (ResT, 'lite')):
        with pytest.raises(ValueError) as raised:
            load(path, None, arch, kind)
        words = f"looks like ResTV2(arch='tiny'), does not fit {kind.__name__}("
        assert words in str(raised.value)
    with pytest.raises(ValueError, match=r"looks like ResT\(arch='lite'\).*ResTV2\(arch='t"):
        load(published(tmp_path / 'rest_lite.pth'), None, 'tiny', ResTV2)
    arch = dict(embed_dims=(128, 256, 512, 1024), depths=(2, 3, 16, 3), num_heads=(1, 2, 4, 8),
                sr_ratios=(8, 4, 2, 1))
    torch.save(ResTV2(arch).state_dict(), path)
    with pytest.raises(ValueError, match='another network than ResTV2.*depths are 2 3 16 3'):
        load(path, None, 'large', ResTV2)


# safetensors


def as_safetensors(header, data=b''):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(header)) + header + data


def test_safetensors(tmp_path, log):
    from safetensors.torch import save_file
    path = tmp_path / 'rest_lite.safetensors'
    save_file(classification_weights(), path, metadata=dict(model='not a tensor'))
    check_loaded(load(path))
    assert f'(SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()})' in log.getvalue()


def test_safetensors_wants_its_package(tmp_path, monkeypatch):
    path = tmp_path / 'weights.safetensors'
    path.write_bytes(as_safetensors({}))
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(ImportError, match='pip install safetensors'):
        load(path)


@pytest.mark.parametrize('content, words', [
    (b'', 'header too small'),
    (b'hello world, this is text', 'header too large'),
    (struct.pack('<Q', 2**63) + b'{}', 'header too large'),
    (struct.pack('<Q', 99_000_000) + b'{}', 'invalid header length'),
    (as_safetensors(b'[' * 100_000), 'invalid JSON'),
    (as_safetensors({'a': dict(dtype='F32', shape=[2], data_offsets=[0, 8])}, b'1234'), ''),
    (as_safetensors({'a': dict(dtype='F32', shape=[2**40] * 2, data_offsets=[0, 8])},
                    b'12345678'), 'overflow'),
    (as_safetensors({'a': dict(dtype='F32', shape=[0, 2**63], data_offsets=[0, 0])}), ''),
    (as_safetensors({}), 'no named tensors'),
    (pickle.dumps({'a': 1}), ''),
], ids=['empty', 'text', 'huge', 'long', 'deep', 'short', 'overflow', 'zero', 'none', 'pickle'])
def test_damaged_safetensors(content, words, tmp_path):
    path = tmp_path / 'odd.safetensors'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='odd.safetensors.*' + words):
        load(path)


@pytest.mark.parametrize('kind', ['safetensors', 'pth', 'legacy.pth'])
def test_damaged_bytes_are_a_value_error_or_load(kind, tmp_path, many):
    weights = {'a': torch.arange(6.), 'b': torch.ones(2, 3, dtype=torch.int64)}
    path = tmp_path / f'weights.{kind}'
    if kind == 'safetensors':
        from safetensors.torch import save_file
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == 'pth')
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(many(200, 2000)):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(damaged[:rng.choice([None, rng.randrange(len(whole))])])
        try:
            read_state_dict(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 50


# Wrong files


@pytest.mark.parametrize('stem', ['rest', 'resnet', 'pvt'])
@pytest.mark.parametrize('in_channels', [1, 2, 4, 6, 13])
def test_images_of_other_channels_by_choice(in_channels, stem, tmp_path):
    """As timm's adapt_input_conv: (C, 3, k, k) is summed for one channel, or repeated."""
    path = tmp_path / 'weights.pth'
    source = ResT('lite', 3, (0, ), stem=stem).double().eval()
    torch.save(source.state_dict(), path)
    cfg = dict(type='Pretrained', checkpoint=str(path), in_channels='adapt')
    model = ResT('lite', in_channels, (0, ), stem=stem, init_cfg=cfg).double().eval()
    model.init_weights()
    first, *rest = model.state_dict().items()
    rgb = source.state_dict()[first[0]]
    for i in range(in_channels):
        scale = 3 / in_channels
        want = rgb.sum(1) if in_channels == 1 else rgb[:, i % 3] * scale
        torch.testing.assert_close(first[1][:, i], want)
    torch.testing.assert_close(dict(rest), dict(list(source.state_dict().items())[1:]))
    if in_channels % 3 in (0, 1) and in_channels != 4 and in_channels != 13:
        grey = torch.rand(1, 1, 32, 40, dtype=torch.double)
        torch.testing.assert_close(model(grey.expand(-1, in_channels, -1, -1))[0],
                                   source(grey.expand(-1, 3, -1, -1))[0])


def test_only_three_channels_are_adapted(tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(ResT('lite', 4, (0, )).state_dict(), path)
    with pytest.raises(ValueError, match="in_channels=1 here, 4 in the file; in_channels='ad"):
        load(path, in_channels=1, out_indices=(0, ))
    cfg = dict(type='Pretrained', checkpoint=str(path), in_channels='adapt')
    with pytest.raises(ValueError, match='in_channels=1 here, 4 in the file'):
        ResT('lite', 1, (0, ), init_cfg=cfg).init_weights()
    with pytest.raises(ValueError, match="in_channels=3 must be 'adapt' or None"):
        ResT('lite', init_cfg=dict(cfg, in_channels=3)).init_weights()


@pytest.mark.parametrize('stem', ['rest', 'resnet', 'pvt'])
def test_images_of_other_channels_are_refused(stem, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(ResT('lite', 3, (0, ), stem=stem).state_dict(), path)
    for in_channels in (1, 4):
        with pytest.raises(ValueError) as raised:
            load(path, stem=stem, in_channels=in_channels, out_indices=(0, ))
        assert f'in_channels={in_channels} here, 3 in the file' in str(raised.value)
        assert str(path) in str(raised.value)
    load(path, stem=stem, out_indices=(0, ))
    source = ResT('lite', 4, (0, ), stem=stem)
    torch.save(source.state_dict(), path)
    model = load(path, stem=stem, in_channels=4, out_indices=(0, ))
    torch.testing.assert_close(model.state_dict(), source.double().state_dict())


@pytest.mark.parametrize('have, want', [('lite', 'small'), ('small', 'lite'),
                                        ('base', 'small'), ('small', 'large')])
def test_another_size_is_refused_and_both_are_named(have, want, tmp_path):
    path = published(tmp_path / 'weights.pth', have)
    with pytest.raises(ValueError) as raised:
        load(path, arch=want)
    assert f"looks like ResT(arch='{have}')" in str(raised.value)
    assert f"does not fit ResT(arch='{want}')" in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_refused_file_changes_nothing(tmp_path):
    path = published(tmp_path / 'rest_small.pth', 'small')
    model = ResT('lite', init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError):
        model.init_weights()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_files_that_fit_nothing_are_refused(tmp_path):
    path = tmp_path / 'other.pth'
    torch.save({'layer1.0.conv1.weight': torch.zeros(64, 64, 1, 1)}, path)
    with pytest.raises(ValueError, match=r"none of the published models.*ResT\(arch='lite'\)"):
        load(path)
    with pytest.raises(ValueError, match=r"prefix='backbone.'.*layer1.0.conv1.weight"):
        load(path, 'backbone.')
    torch.save({f'backbone.{k}': v for k, v in classification_weights().items()}, path)
    with pytest.raises(ValueError, match="set prefix='backbone.'"):
        load(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match='no named tensors'):
        load(path)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        load(tmp_path / 'nowhere.pth')
    whole = published(tmp_path / 'whole.pth').read_bytes()
    for name, content in dict(empty=b'', text=b'hello', half=whole[:len(whole) // 2]).items():
        path = tmp_path / f'{name}.pth'
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f'{name}.pth'):
            load(path)


# Code in files


class Payload:

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('place', ['args', 'weights', 'key'])
@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('style', ['system', 'eval', 'popen', 'runpy', 'torch_load'])
def test_code_in_a_file_does_not_run(style, legacy, place, tmp_path):
    mark = tmp_path / 'ran'
    code = f"open({str(mark)!r}, 'w').close()"
    nested = io.BytesIO()
    pickle.dump(Payload(eval, code), nested)
    payload = dict(
        system=Payload(os.system, f'touch {mark}'),
        eval=Payload(eval, code),
        popen=Payload(subprocess.Popen, ['touch', str(mark)]),
        runpy=Payload(exec, code),
        torch_load=Payload(torch.storage._load_from_bytes, nested.getvalue()))[style]
    content = classification_weights()
    content = dict(
        args={'model': content, 'args': payload},
        weights={'model': dict(content, extra=payload)},
        key={'model': content, (payload, ): 1})[place]
    path = tmp_path / 'evil.pth'
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafeCheckpointError, match='no code in it was run.*torch.save'):
        load(path)
    assert not mark.exists()


def test_a_bare_pickle_with_code_does_not_run(tmp_path):
    mark, path = tmp_path / 'ran', tmp_path / 'evil.pth'
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Payload(os.system, f'touch {mark}'), protocol))
        with pytest.raises(ValueError):
            load(path)
        assert not mark.exists()


def test_names_that_may_lie_beside_weights_do_not_run_either(tmp_path):
    mark, path = tmp_path / 'ran', tmp_path / 'odd.pth'
    run_it = Payload(numpy.testing.measure, f"open({str(mark)!r}, 'w').close()")
    torch.save({'model': classification_weights(), 'args': run_it}, path)
    check_loaded(load(path))
    assert not mark.exists()


def test_torchscript_is_refused(tmp_path):
    path = tmp_path / 'script.pt'
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(path))
    with pytest.raises(UnsafeCheckpointError, match='TorchScript'):
        load(path)
