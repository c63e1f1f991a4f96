import random
from types import SimpleNamespace

import numpy as np
import torch

from mmrest.engine import ReseedHook


def draw():
    return random.random(), np.random.rand(), torch.rand(()).item()


def numbers(steps, start=0, seed=0, validate=()):
    """What training draws at each step: while it loads a batch, and in the model."""
    hook = ReseedHook()
    runner = SimpleNamespace(seed=seed, iter=start)
    hook.before_train_epoch(runner)
    drawn = {}
    for step in range(start, steps):
        loading = draw()
        hook.before_train_iter(runner, step)
        drawn[step] = loading, draw()
        hook.after_train_iter(runner, step)
        runner.iter += 1
        if step in validate:
            draw()
            hook.after_val(runner)
    return drawn


def test_numbers_depend_on_seed_and_step_alone():
    draw()
    whole = numbers(6)
    draw()
    assert {step: whole[step] for step in range(3, 6)} == numbers(6, start=3)
    assert numbers(6, validate=(1, 2)) == whole
    assert numbers(6, seed=1)[0] != whole[0]


def test_no_number_comes_twice():
    every = [value for step in numbers(100).values() for part in step for value in part]
    assert len(set(every)) == len(every) == 600
