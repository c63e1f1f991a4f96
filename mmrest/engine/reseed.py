"""Random numbers that do not depend on where a run was interrupted."""
import random

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class ReseedHook(Hook):
    """Seed Python, NumPy and PyTorch at each step, from the run's seed and the step alone.

    MMEngine does not save the state of the random number generators. A resumed run draws
    other numbers (stochastic depth, sampled proposals, flips) than an uninterrupted one. With
    this hook and ``randomness.seed``, it draws the same ones. Exception: persistent data
    workers, which keep the state that they started with.
    """

    priority = 'VERY_LOW'  # after hooks that draw numbers themselves

    def before_train_epoch(self, runner) -> None:
        _seed(runner.seed, runner.iter, 0)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        _seed(runner.seed, runner.iter, 1)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        _seed(runner.seed, runner.iter + 1, 0)  # for loading the next batch

    def after_val(self, runner) -> None:
        _seed(runner.seed, runner.iter, 0)


def _seed(*entropy: int) -> None:
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
