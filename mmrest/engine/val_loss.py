"""The loss on the validation data, as a metric of each validation."""
import copy
import random
import re
from contextlib import contextmanager
from typing import Dict, Iterator, Optional, Tuple

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dist import all_gather_object, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..errors import UserError
from .reseed import seed_all


@HOOKS.register_module()
class ValLossHook(Hook):
    """Adds ``val_loss`` to the metrics of each validation: ``dict(type='ValLossHook')``.

    It is the mean over the images of ``val_dataloader``, of each batch's loss in evaluation
    mode, beside one mean for each part of the loss. ``CheckpointHook(save_best='val_loss')``
    and ``EarlyStoppingHook(monitor='val_loss')`` can use it. Each process takes other images,
    and each image counts once. Annotations are resized with their image, and batches padded,
    as in training. All random numbers are the same in each validation, and afterwards those of
    a run without it.

    Raises:
        UserError: There are more processes than images.
    """

    priority = 'HIGHEST'  # before the hooks that read metrics, and before EMAHook swaps back

    def __init__(self):
        self.loader = None

    def before_val(self, runner) -> None:
        if self.loader is not None:
            return
        loader = copy.deepcopy(runner.cfg.val_dataloader)
        _load_annotations_first(loader.dataset)
        loader.update(  # mm's own samplers fill up unequal shares with images that come twice
            sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
            persistent_workers=False, drop_last=False)
        self.loader = Runner.build_dataloader(loader, seed=runner.seed)
        if len(self.loader.dataset) < get_world_size():
            raise UserError(f'ValLossHook: {get_world_size()} processes cannot share '
                            f'{len(self.loader.dataset)} images of val_dataloader')
        self.most = max(all_gather_object(len(self.loader)))  # batches of a process
        self.preprocessor = copy.deepcopy(_unwrapped(runner.model).data_preprocessor)
        self.preprocessor.batch_augments = None

    def after_val_epoch(self, runner, metrics: Optional[Dict[str, float]] = None) -> None:
        with torch.no_grad(), _numbers_of_its_own():
            means = self._means(_unwrapped(runner.model))
        metrics.update(means)
        known = [cfg['data_src'] for cfg in runner.log_processor.custom_cfg]
        runner.log_processor.custom_cfg += [  # else: what is named loss is a mean over the past
            dict(data_src=name, method_name='current') for name in means if name not in known]

    def _means(self, model: torch.nn.Module) -> Dict[str, float]:
        sums: Dict[str, float] = {}
        images = 0
        for batch, counts in self._batches():
            data = self.preprocessor(batch, True)  # else masks and maps are not padded
            _, parts = model.parse_losses(model(**data, mode='loss'))
            count = len(data['data_samples']) * counts
            images += count
            for name, value in parts.items():
                if 'loss' in name and count:
                    sums[name] = sums.get(name, 0.) + float(value) * count
        shares = all_gather_object((sums, images))
        images = sum(count for _, count in shares)
        return {f'val_{name}': sum(part.get(name, 0.) for part, _ in shares) / images
                for name in sums}

    def _batches(self) -> Iterator[Tuple[dict, bool]]:
        """This process's batches, and whether they count.

        The losses of some detectors add up over all processes, which all have to take part.
        One that has fewer batches repeats its last one.
        """
        for batch in self.loader:
            yield batch, True
        for _ in range(self.most - len(self.loader)):
            yield batch, False


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    return model.module if is_model_wrapper(model) else model


def _load_annotations_first(dataset: ConfigDict) -> None:
    """Move what loads annotations behind the first step, which loads the image.

    mm's own validation has it after Resize, because its metrics compare at the size of files.
    """
    for inner in dataset.get('datasets', [dataset.dataset] if 'dataset' in dataset else []):
        _load_annotations_first(inner)
    steps = dataset.get('pipeline', [])
    for i, step in enumerate(steps):
        if re.search(r'Load\w*Annotations', str(step['type'])):
            steps.insert(1, steps.pop(i))


@contextmanager
def _numbers_of_its_own() -> Iterator[None]:
    """Python, NumPy and PyTorch draw numbers of a fixed seed, and go on as before."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        seed_all(0)
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])
