"""From a config to its model and the model's input, for the scripts in tools/."""
import functools
import logging
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Tuple, Union

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import print_log
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from torch import Tensor, nn

from .errors import UserError
from .models import ResT
from .models.checkpoint import check_backbone, few, without_prefix
from .safe_reading import read_state_dict
from .utils import moved

__getattr__ = moved(__name__, example='mmrest.apis.dummy_inputs')


def exit_on_user_error(main: Callable) -> Callable:
    """Decorate a script's ``main``: what a user can mend ends it with one sentence.

    :class:`~mmrest.errors.UserError`, FileNotFoundError, and an OSError that names its file
    become ``SystemExit(sentence)``, which prints the sentence and exits with code 1. Ctrl-C
    exits with 130. All other errors keep their traceback.
    """

    @functools.wraps(main)
    def run(*args):
        try:
            return main(*args)
        except (UserError, OSError) as error:
            named = isinstance(error, (UserError, FileNotFoundError)) or error.filename
            if not named:
                raise
            raise SystemExit(str(error)) from error
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    return run


def package_of(cfg: Config) -> str:
    """Return 'mmdet', 'mmpretrain', 'mmseg' or another package that a config is for."""
    kind = cfg.model.type  # a class in pure-Python configs, which have no default_scope
    scope = kind.rpartition('.')[0] if isinstance(kind, str) else kind.__module__
    return cfg.get('default_scope') or scope.partition('.')[0] or 'mmdet'


def read_config(path: str, options: Optional[dict] = None) -> Config:
    """Read a config and make its scope the default one.

    Args:
        path (str): The config.
        options (dict, optional): Values to change, as from ``--cfg-options``.
    """
    cfg = Config.fromfile(path)
    for node in dicts(dict(cfg.items())):
        if node.get('_scope_') == 'mmrest':  # of a base 'mmrest::...': no registry has it
            del node['_scope_']
    cfg.merge_from_dict(options or {})
    init_default_scope(package_of(cfg))
    return cfg


def dicts(node: Any) -> Iterator[dict]:
    """All dicts in a config, without those in tuples."""
    if isinstance(node, dict):
        yield node
    if isinstance(node, (dict, list)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from dicts(child)


def build_model(cfg: Config, checkpoint: Optional[Union[str, Path]] = None) -> nn.Module:
    """Build a config's whole model in eval mode.

    Args:
        cfg (Config): From :func:`read_config`.
        checkpoint (str | Path, optional): Its weights. No code in the file runs. Without a
            checkpoint, the weights are random.

    Raises:
        UserError: The weights do not fit, see :func:`check_fit`.
    """
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(cfg.model).eval()
    if checkpoint is not None:
        fitting = check_fit(model, read_state_dict(checkpoint), checkpoint)
        model.load_state_dict(fitting, strict=False)
    return model


def check_fit(model: nn.Module, state: Dict[str, Tensor],
              checkpoint: Union[str, Path]) -> Dict[str, Tensor]:
    """Return the weights that have their place in a model. The log says what has none.

    Args:
        model (nn.Module): A whole model, or a ResT.
        state (dict[str, Tensor]): The weights.
        checkpoint (str | Path): Their file, for log and errors.

    Raises:
        UserError: Not the whole backbone fits, or nothing does. Heads may differ.
    """
    own = {k: v for k, v in model.state_dict().items() if not k.endswith('num_batches_tracked')}
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    name, rest = next(((n, m) for n, m in model.named_modules() if isinstance(m, ResT)),
                      ('backbone', None))
    prefix = name and f'{name}.'
    if rest is not None:
        check_backbone(rest, without_prefix(rest, state, checkpoint, prefix), checkpoint)
    lacking = [k for k in own if k.startswith(prefix) and k not in fitting]
    if not fitting or rest is None and lacking:
        raise UserError(f'checkpoint={str(checkpoint)!r} does not fit {type(model).__name__}: '
                        f'it has no {few(lacking or own)} of the same shape')
    others = [k for k in own if not k.startswith(prefix)]
    lacking = [k for k in others if k not in fitting]
    if lacking:
        print_log(f'{checkpoint}: the backbone fits, and {len(others) - len(lacking)} of '
                  f'{len(others)} other tensors. These keep their initial values: '
                  f'{few(lacking)}', 'current', logging.WARNING)
    return {k: v for k, v in state.items() if k in fitting or k.endswith('num_batches_tracked')}


def find_rest(model: nn.Module) -> ResT:
    """Return the ResT in a model.

    Raises:
        ValueError: There is none.
    """
    for module in model.modules():
        if isinstance(module, ResT):
            return module
    raise UserError(f'the model of the config, {type(model).__name__}, has no ResT in it')


def dummy_inputs(cfg: Config, model: nn.Module, shape: Tuple[int, int], batch: int = 1) -> dict:
    """Black images (batch, C, H, W), as ``model(**inputs, mode='tensor')`` takes them.

    C is the backbone's ``in_channels`` in the config, which all backbones of mm have as 3.
    """
    channels = cfg.model.get('backbone', {}).get('in_channels', 3)
    inputs = torch.zeros(batch, channels, *shape, device=next(model.parameters()).device)
    samples = None
    if package_of(cfg) == 'mmdet':
        from mmdet.structures import DetDataSample
        meta = dict(img_shape=shape, ori_shape=shape, scale_factor=(1., 1.),
                    pad_shape=shape, batch_input_shape=shape)
        samples = [DetDataSample(metainfo=meta) for _ in range(batch)]
    return dict(inputs=inputs, data_samples=samples)


def image_pipeline(cfg: Config) -> Compose:
    """The config's test pipeline for images without annotations."""
    return Compose([
        TRANSFORMS.build(step) for step in cfg.test_dataloader.dataset.pipeline
        if 'LoadAnnotations' not in str(step['type'])
    ])


def read_image(cfg: Config, model: nn.Module, path: str) -> Tuple[np.ndarray, Tensor]:
    """Read an image with the config's test pipeline.

    Args:
        cfg (Config): From :func:`read_config`.
        model (nn.Module): Its model. The data preprocessor is used.
        path (str): The image.

    Returns:
        tuple: The picture (h, w, 3) of :func:`as_picture`, and the model's input
        (1, C, H, W), which may be padded at the bottom and at the right.
    """
    data = image_pipeline(cfg)(dict(img_path=path, img_id=0))
    inputs = model.data_preprocessor(pseudo_collate([data]), False)['inputs']
    return as_picture(data['inputs'].numpy().transpose(1, 2, 0)), inputs


def as_picture(image: np.ndarray) -> np.ndarray:
    """Turn an image of any channels and numbers into one to draw on.

    Args:
        image (np.ndarray): (h, w) or (h, w, C). The first three channels are BGR; of fewer
            than three, the first is shown as grey.

    Returns:
        np.ndarray: (h, w, 3), RGB, uint8. What 8 bits cannot show is stretched to 0 to 255.
    """
    image = np.atleast_3d(image)
    image = image[..., 2::-1] if image.shape[2] > 2 else image[..., :1].repeat(3, axis=2)
    low, high = image.min(), image.max()
    if image.dtype != np.uint8 and (low < 0 or high > 255 or high <= 1):
        image = (image - low) * (255. / max(high - low, 1e-6))
    return np.ascontiguousarray(image, np.uint8)
