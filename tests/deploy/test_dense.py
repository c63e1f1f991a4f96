"""The export classes of classifiers and segmenters, and what is replaced for the exporter."""
from functools import partial

import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmengine.config import ConfigDict
from mmpretrain.models import ClsDataPreprocessor
from mmseg.models import SegDataPreProcessor
from mmseg.models.utils import Upsample
from mmseg.structures import SegDataSample
from torch import nn
from torch.testing import assert_close

from mmrest.deploy import dense, verify
from mmrest.deploy.export import FAMILIES
from mmrest.errors import UserError

from .models import build

NORM = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


@pytest.mark.parametrize('preprocessor, shape', [
    (DetDataPreprocessor(**NORM, bgr_to_rgb=True, pad_size_divisor=32), (64, 64)),
    (DetDataPreprocessor(**NORM, pad_size_divisor=32, pad_value=7), (64, 64)),
    (DetDataPreprocessor(), (50, 61)),
    (ClsDataPreprocessor(**NORM, to_rgb=True), (50, 61)),
    (SegDataPreProcessor(**NORM, bgr_to_rgb=True, size=(99, 99)), (50, 61)),
    (SegDataPreProcessor(**NORM, size=(99, 99), test_cfg=dict(size_divisor=16)), (64, 64)),
])
def test_preprocessed_as_mm_does_it(preprocessor, shape):
    images = verify.pictures((2, 50, 61))
    bgr = list(images.flip(1))
    data = preprocessor(dict(inputs=bgr, data_samples=[SegDataSample() for _ in bgr] if (
        isinstance(preprocessor, SegDataPreProcessor)) else None), False)
    found = dense.Preprocess(preprocessor)(images)
    assert found.shape[2:] == shape
    assert_close(found, data['inputs'], rtol=0, atol=0)


def test_padding_of_a_segmenter_is_cut_off():
    model = build('semantic_fpn')
    model.data_preprocessor.test_cfg = dict(size_divisor=32)
    images = verify.pictures((2, 75, 130))
    with torch.no_grad():
        labels = dense.OnnxSegmenter(model)(images)
    assert labels.shape == (2, 75, 130)
    assert verify.check_label_maps(model, images, [labels.numpy()])['pixels wrong'] == 0


@pytest.mark.parametrize('align_corners', [False, True])
def test_slides_are_compared_on_pictures_larger_than_the_crop(align_corners):
    model = build('semantic_fpn')
    for module in model.modules():
        if hasattr(module, 'align_corners'):
            module.align_corners = align_corners
    model.test_cfg = ConfigDict(mode='slide', crop_size=(64, 96), stride=(40, 56))
    wrapper, check = FAMILIES['EncoderDecoder']
    network = wrapper(dense.replace_constants(model)).eval()
    assert network.metadata == dict(slide=dict(
        crop_size=[64, 96], stride=[40, 56], align_corners=align_corners))
    sizes = []

    def run(inputs, sign=1):
        sizes.append(inputs['image'].shape[2:])
        with torch.no_grad():
            logits = network(torch.from_numpy(inputs['image'])).numpy()
        logits[..., :20] *= sign
        return [logits]

    for shape in (*network.more_sizes, (2, 50, 130)):
        images = verify.pictures(shape)
        labels = network.outputs(run, images)
        assert check(model, images, labels)['pixels wrong'] <= 1e-4
        with pytest.raises(UserError, match='labels: .* off'):
            check(model, images, network.outputs(partial(run, sign=-1), images))
    assert set(sizes) == {(64, 96), (50, 96)}  # and 6 crops of the picture for the check
    assert network.more_sizes == ((1, 65, 153), ) and len(sizes) == 2 * (6 + 2)


@pytest.mark.parametrize('bins', [1, 2, 3, 6, (2, 3)])
@pytest.mark.parametrize('size', [(1, 1), (3, 8), (7, 6), (32, 5)])
def test_adaptive_pooling(bins, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    pool = nn.AdaptiveAvgPool2d(bins)
    assert_close(dense.AdaptivePool(pool)(x), pool(x))


def test_what_is_replaced_is_a_copy():
    model = build('upernet')
    before = [type(module) for module in model.modules()]
    copy = dense.replace_constants(model)
    assert [type(module) for module in model.modules()] == before
    kinds = [type(module) for module in copy.modules()]
    assert kinds.count(dense.AdaptivePool) == 3 and kinds.count(nn.AdaptiveAvgPool2d) == 1
    kinds = [type(m) for m in dense.replace_constants(build('semantic_fpn')).modules()]
    assert kinds.count(dense.Upsample) == 6 and Upsample not in kinds
