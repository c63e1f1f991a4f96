"""Any mm config with ResT in it: its model, and images as the model takes them."""
from pathlib import Path
from typing import List, Optional, Tuple, Union

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from torch import Tensor, nn

from .models import ResT
from .models.checkpoint import read_state_dict


def read_config(path: str, options: Optional[dict] = None) -> Config:
    """The config, with its scope's modules registered.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'config={path!r}: no such file')
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(options or {})
    scope = cfg.get('default_scope') or 'mmdet'
    __import__(f'{scope}.utils', fromlist=['x']).register_all_modules(False)
    init_default_scope(scope)
    return cfg


def build_model(cfg: Config, checkpoint: Optional[Union[str, Path]] = None) -> nn.Module:
    """The config's whole model in eval mode, its weights random without a checkpoint.

    Args:
        cfg (Config): From :func:`read_config`.
        checkpoint (str | Path, optional): Weights of exactly this model; no code in the
            file runs.

    Raises:
        ValueError: The file's names or shapes are not the model's.
    """
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(cfg.model).eval()
    if checkpoint is not None:
        try:
            model.load_state_dict(read_state_dict(checkpoint))
        except RuntimeError as error:
            raise ValueError(
                f'checkpoint={str(checkpoint)!r} does not fit the config: {error}') from None
    return model


def find_rest(model: nn.Module) -> ResT:
    """The ResT in a model.

    Raises:
        ValueError: There is none.
    """
    for module in model.modules():
        if isinstance(module, ResT):
            return module
    raise ValueError(f'the model of the config, {type(model).__name__}, has no ResT in it')


class Logits(nn.Module):
    """A classifier of MMPretrain as plain torch: normalised images in, logits out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image, mode='tensor')


def example(cfg: Config, model: nn.Module, shape: Tuple[int, int], batch: int = 1) -> dict:
    """Black images (batch, 3, H, W) as ``model(**example, mode='tensor')`` takes them."""
    inputs = torch.zeros(batch, 3, *shape, device=next(model.parameters()).device)
    samples = None
    if cfg.get('default_scope') == 'mmdet':
        from mmdet.structures import DetDataSample
        meta = dict(img_shape=shape, ori_shape=shape, scale_factor=(1., 1.),
                    pad_shape=shape, batch_input_shape=shape)
        samples = [DetDataSample(metainfo=meta) for _ in range(batch)]
    return dict(inputs=inputs, data_samples=samples)


def read_image(cfg: Config, model: nn.Module, path: str) -> Tuple[np.ndarray, Tensor]:
    """An image as the config's test pipeline makes it.

    Args:
        cfg (Config): From :func:`read_config`.
        model (nn.Module): Its model, whose data preprocessor is used.
        path (str): The image.

    Returns:
        tuple: The picture (h, w, 3), RGB, uint8, and the model's input (1, 3, H, W), which
        may be padded below and at the right.

    Raises:
        FileNotFoundError: There is no such image.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'image={path!r}: no such file')
    steps: List[dict] = [
        step for step in cfg.test_dataloader.dataset.pipeline
        if 'LoadAnnotations' not in str(step['type'])
    ]
    pipeline = Compose([TRANSFORMS.build(step) for step in steps])
    data = pipeline(dict(img_path=path, img_id=0))
    picture = data['inputs'].numpy().transpose(1, 2, 0)[..., ::-1]  # BGR -> RGB
    inputs = model.data_preprocessor(pseudo_collate([data]), False)['inputs']
    return np.ascontiguousarray(picture), inputs
