"""mmrest.timm_models: features in timm, and a U-Net of segmentation_models_pytorch."""
import argparse

import pytest
import torch
from torch.testing import assert_close

from . import golden

timm = pytest.importorskip('timm')
from mmrest import timm_models  # noqa: E402
from mmrest.models.checkpoint import load_pretrained  # noqa: E402

IMAGE = dict(size=(1, 3, 75, 110))


def create(name='rest_lite', **kwargs):
    return timm.create_model(name, features_only=True, **kwargs)


@pytest.mark.parametrize('prefix, base', [
    ('rest', timm_models.ResT), ('restv2', timm_models.ResTV2)])
def test_every_architecture(prefix, base):
    names = {f'{prefix}_{arch}': arch for arch in base.arch_zoo}
    assert timm.list_models(f'{prefix}_*') == sorted(names)
    for name, arch in names.items():
        with torch.device('meta'):
            model = create(name)
        assert isinstance(model, base) and model.arch == arch
        assert model.feature_info.channels() == list(base.arch_zoo[arch]['embed_dims'])


@pytest.mark.parametrize('out_indices, stages', [
    (None, (0, 1, 2, 3)), ((0, 2), (0, 2)), ((-1, ), (3, )), (2, (2, 3))])
def test_features_are_those_of_the_backbone(out_indices, stages):
    """timm's out_indices may be negative, or a number of stages from the end."""
    torch.manual_seed(0)
    model = create(out_indices=out_indices, in_chans=2).double().eval()
    whole = timm_models.ResT('lite', in_channels=2).double().eval()
    whole.load_state_dict(model.state_dict(), strict=False)
    image = torch.rand(1, 2, 75, 110, dtype=torch.double)
    found, want = model(image), whole(image)
    assert isinstance(found, list)
    assert_close(found, [want[i] for i in stages], rtol=0, atol=0)
    assert model.feature_info.channels() == [feature.shape[1] for feature in found]
    for feature, stride in zip(found, model.feature_info.reduction()):
        assert feature.shape[2:] == (-(-75 // stride), -(-110 // stride))
    for name, feature in zip(model.feature_info.module_name(), found):
        assert model.get_submodule(name).normalized_shape == (feature.shape[1], )


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (0, 1)])
def test_released_files_by_checkpoint_path(out_indices, tmp_path):
    path = tmp_path / 'rest_lite.pth'
    torch.save(dict(model=golden.draw_weights('lite'), args=argparse.Namespace(lr=5e-4)), path)
    model = create(checkpoint_path=str(path), out_indices=out_indices)
    backbone = timm_models.ResT('lite', out_indices=out_indices)
    load_pretrained(backbone, path)
    assert_close(model.state_dict(), backbone.state_dict(), rtol=0, atol=0)
    torch.save(model.state_dict(), path)  # and one's own
    again = create(checkpoint_path=str(path), out_indices=out_indices)
    assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"does not fit ResTFeatures\(arch='base'\)"):
        create('rest_base', checkpoint_path=str(path))


@pytest.mark.parametrize('name', ['rest_lite', 'restv2_tiny'])
def test_what_timm_gives_any_model(name):
    """A place, a type, settings for its transforms, and those of a classifier."""
    model = create(name, num_classes=0, global_pool='', drop_rate=0.1, feature_cls='list',
                   device='meta', dtype=torch.float64, pretrained_cfg_overlay=dict(crop_pct=1.))
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {('meta', torch.float64)}
    assert model(torch.rand(**IMAGE, device='meta', dtype=torch.double))[3].shape[2:] == (3, 4)
    data = timm.data.resolve_model_data_config(model)
    assert data == dict(timm.data.resolve_model_data_config(create('pvt_v2_b0')), crop_pct=1.)
    assert model.default_cfg['architecture'] == name
    model.set_grad_checkpointing()
    assert model.with_cp
    stem = model.get_submodule(model.pretrained_cfg['first_conv'])
    assert stem is next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))


def test_what_there_is_not():
    with pytest.raises(ValueError, match="rest_lite: feature_cls='dict' must be 'list'"):
        create(feature_cls='dict')
    with pytest.raises(ValueError, match='rest_lite: pretrained=False, features_only=False mu'):
        timm.create_model('rest_lite')
    with pytest.raises(ValueError, match='pretrained=True, .*give weights by checkpoint_path'):
        create(pretrained=True)


@pytest.mark.parametrize('name, depth', [('rest_lite', 5), ('restv2_tiny', 3)])
def test_a_unet_of_segmentation_models_pytorch(name, depth):
    smp = pytest.importorskip('segmentation_models_pytorch')
    unet = smp.Unet(f'tu-{name}', encoder_weights=None, encoder_depth=depth, in_channels=4,
                    decoder_channels=(32, 16, 16, 8, 8)[:depth], drop_path_rate=0.)
    out = unet(torch.rand(2, 4, 64, 96))
    assert out.shape == (2, 1, 64, 96)
    out.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in unet.parameters())
