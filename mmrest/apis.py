"""From a config to its model and the model's input, for the scripts in tools/."""
import functools
import traceback
from pathlib import Path
from typing import Callable, Optional, Tuple, Union

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from torch import Tensor, nn

from .models import ResT
from .safe_reading import read_state_dict


def exit_on_user_error(main: Callable) -> Callable:
    """Decorate a script's ``main``: a mistake of the user ends it with one sentence.

    These errors become ``SystemExit(sentence)``, which prints the sentence and exits with
    code 1:

    * FileNotFoundError, wherever it is raised;
    * ValueError, OSError and ImportError that mmrest or the script's own folder raises: a
      wrong argument, weights that do not fit, a file that cannot be written, a package that
      is not installed.

    All others keep their traceback. So does a ValueError that PyTorch or an mm package
    raises, because it may be a bug.
    """
    folders = (str(Path(__file__).parent), str(Path(main.__code__.co_filename).parent))

    @functools.wraps(main)
    def run(*args):
        try:
            return main(*args)
        except (ValueError, OSError, ImportError) as error:
            raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
            if not isinstance(error, FileNotFoundError) and not raised_in.startswith(folders):
                raise
            raise SystemExit(str(error)) from error

    return run


def read_config(path: str, options: Optional[dict] = None) -> Config:
    """Read a config and make its scope the default one.

    Args:
        path (str): The config.
        options (dict, optional): Values to change, as from ``--cfg-options``.
    """
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(options or {})
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    return cfg


def build_model(cfg: Config, checkpoint: Optional[Union[str, Path]] = None) -> nn.Module:
    """Build a config's whole model in eval mode.

    Args:
        cfg (Config): From :func:`read_config`.
        checkpoint (str | Path, optional): Weights of exactly this model. No code in the
            file runs. Without a checkpoint, the weights are random.

    Raises:
        ValueError: Names or shapes in the checkpoint differ from the model's.
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
    """Return the ResT in a model.

    Raises:
        ValueError: There is none.
    """
    for module in model.modules():
        if isinstance(module, ResT):
            return module
    raise ValueError(f'the model of the config, {type(model).__name__}, has no ResT in it')


def example(cfg: Config, model: nn.Module, shape: Tuple[int, int], batch: int = 1) -> dict:
    """Make black images (batch, C, H, W) as ``model(**example, mode='tensor')`` takes them."""
    channels = find_rest(model).in_channels
    inputs = torch.zeros(batch, channels, *shape, device=next(model.parameters()).device)
    samples = None
    if cfg.get('default_scope') == 'mmdet':
        from mmdet.structures import DetDataSample
        meta = dict(img_shape=shape, ori_shape=shape, scale_factor=(1., 1.),
                    pad_shape=shape, batch_input_shape=shape)
        samples = [DetDataSample(metainfo=meta) for _ in range(batch)]
    return dict(inputs=inputs, data_samples=samples)


def read_image(cfg: Config, model: nn.Module, path: str) -> Tuple[np.ndarray, Tensor]:
    """Read an image with the config's test pipeline.

    Args:
        cfg (Config): From :func:`read_config`.
        model (nn.Module): Its model. The data preprocessor is used.
        path (str): The image.

    Returns:
        tuple: The picture (h, w, 3), RGB, uint8, and the model's input (1, C, H, W), which
        may be padded at the bottom and at the right.
    """
    pipeline = Compose([
        TRANSFORMS.build(step) for step in cfg.test_dataloader.dataset.pipeline
        if 'LoadAnnotations' not in str(step['type'])
    ])
    data = pipeline(dict(img_path=path, img_id=0))
    picture = data['inputs'].numpy().transpose(1, 2, 0)[..., ::-1]  # BGR -> RGB
    if picture.shape[2] == 1:
        picture = picture.repeat(3, axis=2)
    inputs = model.data_preprocessor(pseudo_collate([data]), False)['inputs']
    return np.ascontiguousarray(picture), inputs
