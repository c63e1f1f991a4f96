"""Whether exported models say what mm's own ``predict`` says."""
import copy
from typing import Dict, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from ..errors import UserError
from . import known

PIXEL_TOLERANCE = 1e-3  # share of the pixels of label maps, and of masks within their boxes
TOLERANCE = 1e-4  # of logits and features, relative to the largest
# That much, too, where mm's own float32 is further from float64 than half of TOLERANCE.
LIMIT = 0.05
# Batch, height and width: no multiple of 32, one portrait, one batch of 3.
SIZES = ((1, 203, 310), (1, 250, 190), (3, 97, 131))

Outputs = Sequence[np.ndarray]


def pictures(shape: Tuple[int, int, int], paths: Sequence[str] = (), first: int = 0) -> Tensor:
    """RGB images (B, 3, H, W), uint8: files made to fit, or blobs and noise without files.

    Args:
        shape (tuple[int, int, int]): B, H and W.
        paths (Sequence[str]): The files. Those after number ``first`` are taken, in turn.
        first (int): See there; without files, seed of the random numbers.
    """
    B, H, W = shape
    if paths:
        from PIL import Image
        files = [paths[(first + i) % len(paths)] for i in range(B)]
        images = [np.array(Image.open(file).convert('RGB').resize((W, H))) for file in files]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    generator = torch.Generator().manual_seed(first)
    blobs = torch.rand(B, 3, H // 16 + 2, W // 16 + 2, generator=generator)
    blobs = F.interpolate(blobs, size=(H, W), mode='bilinear')
    noise = torch.rand(B, 3, H, W, generator=generator)
    return (255 * (0.85 * blobs + 0.15 * noise)).to(torch.uint8)


def collate(images: Tensor, sample: type) -> dict:
    """What mm's test pipeline makes of RGB images (B, 3, H, W), with data samples of a type."""
    hw = tuple(images.shape[-2:])
    return pseudo_collate([
        dict(inputs=image, data_samples=sample(
            metainfo=dict(img_shape=hw, ori_shape=hw, scale_factor=(1., 1.))))
        for image in images.flip(1)  # mm loads BGR
    ])


def predict(model: nn.Module, images: Tensor, sample: type, exact: bool = False) -> list:
    """mm's predictions as data samples, see :func:`collate`; ``exact`` ones are in float64."""
    data = collate(images, sample)
    with torch.no_grad():
        if not exact:
            return model.test_step(data)
        data = model.data_preprocessor(data, False)
        return copy.deepcopy(model).double()(
            data['inputs'].double(), data['data_samples'], mode='predict')


def check_label_maps(model: nn.Module, images: Tensor, outputs: Outputs) -> Dict[str, float]:
    """Compare the classes of pixels.

    If too many differ, those count that float32 does not explain: in float64, their class is
    behind the best by more than four times mm's own error, which is twice for each of the two.
    """
    from mmseg.structures import SegDataSample
    samples = predict(model, images, SegDataSample)
    wanted = torch.stack([sample.pred_sem_seg.data[0] for sample in samples])
    found = torch.from_numpy(outputs[0])
    wrong, ties = wanted != found, 0
    if wrong.float().mean() > PIXEL_TOLERANCE:
        plain, exact = (torch.stack([sample.seg_logits.data for sample in both]) for both in (
            samples, predict(model, images, SegDataSample, exact=True)))
        most = min(4 * (plain - exact).abs().max(), LIMIT * exact.abs().max())
        behind = exact.amax(1) - exact.gather(1, found[:, None])[:, 0]
        ties = (wrong & (behind <= most)).sum().item()
        wrong = wrong & ~(behind <= most)
    share = wrong.float().mean().item()
    refuse_above('labels', share, PIXEL_TOLERANCE, 'of the pixels')
    return {'pixels wrong': share, 'classes': len(wanted.unique()), 'near-ties': float(ties)}


def check_logits(model: nn.Module, images: Tensor, outputs: Outputs) -> Dict[str, float]:
    """Compare logits as :func:`check_features` compares features.

    mm's scores have to be what :data:`mmrest.deploy.known.ACTIVATIONS` makes of its logits.
    """
    from mmpretrain.structures import DataSample
    samples = predict(model, images, DataSample)
    inputs = model.data_preprocessor(dict(inputs=images.flip(1)))['inputs']
    with torch.no_grad():
        plain = model(inputs, mode='tensor')
        exact = copy.deepcopy(model).double()(inputs.double(), mode='tensor')
    sigmoid = known.ACTIVATIONS[type(model.head).__name__] == 'sigmoid'
    scores = plain.sigmoid() if sigmoid else plain.softmax(-1)
    wanted = torch.stack([sample.pred_score for sample in samples])
    refuse_above('scores', (scores - wanted).abs().max().item(), TOLERANCE)
    return compare_with_float64('logits', outputs, [plain], [exact])


def check_features(model: nn.Module, images: Tensor, outputs: Outputs) -> Dict[str, float]:
    """Compare a backbone's features with float64, relative to the largest of each stage.

    ``images`` are what the backbone gets. ONNX may be twice as far off as PyTorch in float32:
    an untrained ResT loses three digits, because its instance norm amplifies differences in
    nearly uniform maps.
    """
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(images.double())
        return compare_with_float64('features', outputs, model(images), exact)


def compare_with_float64(name: str, outputs: Outputs, plain: Sequence[Tensor],
                         exact: Sequence[Tensor]) -> Dict[str, float]:
    """See :func:`check_features`: what ONNX gives, and PyTorch in float32 and in float64."""
    errors = []
    for tensors in (plain, map(torch.from_numpy, outputs)):
        errors.append(max(((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()
                          for a, b in zip(tensors, exact)))
    mm, found = errors
    refuse_above(name, found, min(max(TOLERANCE, 2 * mm), LIMIT), 'of the largest')
    return {name: found, f'{name} of PyTorch': mm}


def refuse_above(name: str, error: float, most: float, unit: str = '') -> None:
    if not error <= most:  # NaN too
        raise UserError(f'{name}: {error:.1e} off, at most {most:.0e} {unit}'.rstrip())


def sentence(errors: Dict[str, float]) -> str:
    """What was compared, on how many pictures, and the largest difference.

    Args:
        errors (dict[str, float]): From :func:`mmrest.deploy.export`.
    """
    pictures = f'{errors["pictures"]:.0f} pictures'
    for name in ('logits', 'features'):
        if name in errors:
            return (f'{name} of {pictures} are at most {errors[name]:.1e} of the largest away '
                    f'from float64, those of PyTorch {errors[f"{name} of PyTorch"]:.1e}')
    if 'boxes' not in errors:
        return (f'classes of pixels in {pictures}: {errors["pixels wrong"]:.2%} differ from '
                f'mm, {errors["near-ties"]:.0f} others are near-ties')
    masks = f', masks in {errors["mask"]:.2%} of the pixels' if 'mask' in errors else ''
    return (f'{errors["boxes"]:.0f} boxes in {pictures}, {errors["near-ties"]:.0f} of them '
            f'near-ties, differ from mm by at most {errors["px"]:.1e} px and '
            f'{errors["score"]:.1e} of score{masks}')
