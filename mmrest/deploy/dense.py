"""Classifiers, segmenters and backbones as plain modules that can be exported."""
import copy
from types import SimpleNamespace
from typing import Any, Callable, List, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..apis import find_rest
from . import known


class Preprocess(nn.Module):
    """RGB images (B, 3, H, W), uint8, to what a config's data preprocessor gives.

    They are normalised, and padded at the bottom and at the right to the config's divisor.
    """

    def __init__(self, preprocessor: nn.Module):
        super().__init__()
        converts = any(
            getattr(preprocessor, name, False) for name in ('_channel_conversion', 'to_rgb'))
        self.reverse = not converts  # mm loads BGR
        # Not mm's _enable_normalize, which is private and says the same.
        self.normalize = getattr(preprocessor, 'mean', None) is not None
        if self.normalize:
            self.register_buffer('mean', preprocessor.mean.view(-1, 1, 1))
            self.register_buffer('std', preprocessor.std.view(-1, 1, 1))
        if hasattr(preprocessor, 'test_cfg'):  # MMSegmentation
            self.divisor = (preprocessor.test_cfg or {}).get('size_divisor') or 1
            self.value = preprocessor.pad_val
        else:
            self.divisor, self.value = preprocessor.pad_size_divisor, preprocessor.pad_value

    def forward(self, image: Tensor) -> Tensor:
        image = image.float()
        if self.reverse:
            image = image.flip(1)
        if self.normalize:
            image = (image - self.mean) / self.std
        if self.divisor > 1:
            # Not -H % n: with that, torch.export reasons about sizes for minutes.
            (H, W), n = image.shape[-2:], self.divisor
            below, right = (H + n - 1) // n * n - H, (W + n - 1) // n * n - W
            image = F.pad(image, (0, right, 0, below), value=self.value)
        return image


class OnnxModel(nn.Module):
    """What is exported: images (B, 3, H, W) to outputs that have names.

    Probes are outputs beside them for the check, which the file does not have.
    """
    names: Tuple[str, ...] = ()
    probes: Tuple[str, ...] = ()
    metadata: dict = {}
    more_sizes: Tuple[Tuple[int, int, int], ...] = ()  # to check beside verify.SIZES

    def outputs(self, run: Callable[[dict], List[np.ndarray]], image: Tensor) -> List[Any]:
        """What the file gives for images, for the check. ``run`` runs it."""
        return run(dict(image=image.numpy()))


class OnnxClassifier(OnnxModel):
    """MMPretrain's ImageClassifier: images to logits (B, classes).

    Raises:
        UserError: The model has an option or a part that is not known.
    """
    names = ('logits', )

    def __init__(self, model: nn.Module):
        super().__init__()
        known.check(model)
        self.metadata = dict(activation=known.ACTIVATIONS[type(model.head).__name__])
        self.preprocess = Preprocess(model.data_preprocessor)
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model(self.preprocess(image), mode='tensor')


class OnnxSegmenter(OnnxModel):
    """MMSegmentation's EncoderDecoder: images to the class of each pixel (B, H, W), int64.

    Raises:
        UserError: The model has an option or a part that is not known.
    """
    names = ('labels', )

    def __init__(self, model: nn.Module):
        super().__init__()
        known.check(model)
        self.preprocess = Preprocess(model.data_preprocessor)
        self.model = model

    def logits(self, image: Tensor) -> Tensor:
        """(B, classes, H, W), with the padding of the preprocessor."""
        image = self.preprocess(image)
        return F.interpolate(
            self.model(image, mode='tensor'), size=image.shape[-2:], mode='bilinear',
            align_corners=self.model.align_corners)

    def forward(self, image: Tensor) -> Tensor:
        H, W = image.shape[-2:]
        return self.logits(image)[..., :H, :W].argmax(1)


class SlidingSegmenter(OnnxSegmenter):
    """The same in mode 'slide': crops to logits (B, classes, h, w), of which mm takes the mean.

    Raises:
        UserError: The model has an option or a part that is not known.
    """
    names = ('logits', )

    def __init__(self, model: nn.Module):
        super().__init__(model)
        known.check_slide(model)
        (H, W), (h, w) = (map(int, model.test_cfg[name]) for name in ('crop_size', 'stride'))
        self.metadata = dict(slide=dict(
            crop_size=[H, W], stride=[h, w], align_corners=model.align_corners))
        self.more_sizes = ((1, H + 1, W + w + 1), )  # 2 x 3 crops

    def forward(self, image: Tensor) -> Tensor:
        return self.logits(image)

    def outputs(self, run: Callable[[dict], List[np.ndarray]], image: Tensor) -> List[Any]:
        """The class of each pixel: mm's own ``slide_inference``, with the file's logits."""
        def logits(crop: Tensor, _) -> Tensor:
            return torch.from_numpy(run(dict(image=crop.to(torch.uint8).numpy()))[0])

        slider = SimpleNamespace(test_cfg=self.model.test_cfg, encode_decode=logits,
                                 out_channels=self.model.out_channels)
        mean = type(self.model).slide_inference(slider, image.float(), [{}])
        return [mean.argmax(1).numpy()]


def segmenter(model: nn.Module) -> OnnxModel:
    """A segmenter in the mode of its ``test_cfg``."""
    slides = (model.test_cfg or {}).get('mode') == 'slide'
    return (SlidingSegmenter if slides else OnnxSegmenter)(model)


class Backbone(OnnxModel):
    """A model's ResT: what the data preprocessor gives to the features of the stages."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.rest = find_rest(model)
        known.check(self.rest)
        self.names = tuple(f'stage{i + 1}' for i in self.rest.out_indices)

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        return self.rest(image)


class AdaptivePool(nn.Module):
    """AdaptiveAvgPool2d by two products: the exporter takes its bins for constants."""

    def __init__(self, pool: nn.AdaptiveAvgPool2d):
        super().__init__()
        size = pool.output_size
        self.size = (size, size) if isinstance(size, int) else size

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self.weight(*pair, x) for pair in zip(self.size, x.shape[-2:]))
        return rows @ x @ columns.T

    @staticmethod
    def weight(bins: int, n: int, like: Tensor) -> Tensor:
        """(bins, n): how much of each bin's mean every one of n pixels is."""
        i, j = torch.arange(bins)[:, None], torch.arange(n)
        inside = (j >= i * n // bins) & (j < ((i + 1) * n + bins - 1) // bins)
        inside = inside.to(like)
        return inside / inside.sum(1, keepdim=True)


class Upsample(nn.Module):
    """mmseg's Upsample by a factor: the exporter takes ``int(size * 2.)`` for a constant."""

    def __init__(self, up: nn.Module):
        super().__init__()
        self.factor = int(up.scale_factor)
        self.options = dict(mode=up.mode, align_corners=up.align_corners)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[-2:]
        return F.interpolate(x, size=(self.factor * H, self.factor * W), **self.options)


def replace_constants(model: nn.Module) -> nn.Module:
    """A copy of a model without the modules whose sizes would become constants."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size not in (1, (1, 1)):
                setattr(module, name, AdaptivePool(child))
            elif type(child).__name__ == 'Upsample' and getattr(child, 'scale_factor', None):
                setattr(module, name, Upsample(child))
    return model
