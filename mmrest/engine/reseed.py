"""Random numbers that do not depend on where a run was interrupted."""
import random

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class ReseedHook(Hook):
    """Seeds Python, NumPy and torch at each step, from the run's seed and the step alone.

    MMEngine stores no state of its random number generators, so that a resumed run draws
    other numbers (stochastic depth, proposals' samples, flips) than it would have drawn
    uninterrupted. With this hook and ``randomness.seed`` they are the same, except for
    those of data loading in persistent workers, which go on from the workers' start.
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
