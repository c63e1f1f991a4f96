"""Random numbers that do not depend on where a run was interrupted."""
import random

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class ReseedHook(Hook):
    """Seed Python, NumPy and PyTorch at each step, from the run's seed, the step and the rank.

    MMEngine does not save the state of the random number generators. A resumed run draws
    other numbers (stochastic depth, sampled proposals, flips) than an uninterrupted one. With
    this hook and ``randomness.seed``, it draws the same ones on as many processes. Exception:
    persistent data workers, which keep the state that they started with.
    """

    priority = 'VERY_LOW'  # after hooks that draw numbers themselves

    def before_train_epoch(self, runner) -> None:
        seed_all(runner.seed, runner.iter, 0)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        seed_all(runner.seed, runner.iter, 1)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        seed_all(runner.seed, runner.iter + 1, 0)  # for loading the next batch

    def after_val(self, runner) -> None:
        seed_all(runner.seed, runner.iter, 0)


def seed_all(*entropy: int) -> None:
    """Seed Python, NumPy and PyTorch with numbers and the rank of the process."""
    seed = int(np.random.SeedSequence([*entropy, get_rank()]).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
