"""Memory over hundreds of steps at varying sizes does not rise.

Three numbers are read: tensors that live, bytes of their storages, and the resident set. The
first two must stay the same, exactly. The resident set jumps, so it is judged by the medians of
the thirds of the run: a leak raises both the second above the first and the third above the
second, by its bytes a step; noise and a heap that jumps once to its final size do not.
"""
import gc
import mmap
import random
import statistics
from pathlib import Path

import pytest
import torch

from mmrest import ResT

ARCH = dict(embed_dims=(16, 32, 64), depths=(1, 1, 1), num_heads=(1, 2, 4),
            sr_ratios=(4, 2, 1))
SIDES = (33, 64, 96, 127, 160)


def resident():
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * 4096


def live():
    """Tensors that live, and bytes of their storages, each counted once."""
    gc.collect()
    storages, count = {}, 0
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            count += 1
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return count, sum(storages.values())


class Work:
    """Training steps, or inferences, at sizes that change from one to the next."""

    def __init__(self, training, leak=None):
        torch.manual_seed(0)
        self.model = ResT(ARCH, out_indices=None, drop_path_rate=0.1).train(training)
        self.optimizer = torch.optim.AdamW(self.model.parameters()) if training else None
        self.leak = leak
        self.kept = []

    def step(self, height, width):
        image = torch.randn(2, 3, height, width)
        if self.optimizer is None:
            with torch.no_grad():
                features = self.model(image)
        else:
            features = self.model(image)
            self.optimizer.zero_grad()
            sum(x.square().mean() for x in features).backward()
            self.optimizer.step()
        if self.leak is not None:
            self.kept.append(self.leak(features))

    def readings(self, steps):
        """Tensors and their bytes now and then, the resident set after each step."""
        draw = random.Random(0)
        counts, held, rss = [], [], []
        for i in range(steps):
            self.step(draw.choice(SIDES), draw.choice(SIDES))
            if i < steps // 5:  # optimizer states, caches and heap are there afterwards
                continue
            rss.append(resident())
            if i % (steps // 5) == 0:
                count, size = live()
                counts.append(count)
                held.append(size)
        return counts, held, rss


def rises(values, per_step):
    """Whether the medians of thirds rise twice, each by at least half of ``per_step``."""
    third = len(values) // 3
    first, second, last = (
        statistics.median(values[i * third:(i + 1) * third]) for i in range(3))
    least = per_step * third / 2
    return second - first > least and last - second > least


@pytest.mark.parametrize('training', [True, False], ids=['training', 'inference'])
def test_memory_is_flat(training, many):
    steps = many(30, 200) if training else many(60, 500)
    counts, held, rss = Work(training).readings(steps)
    assert len(set(counts)) == 1, counts
    assert len(set(held)) == 1, held
    assert not rises(rss, many(2**22, 2**20)), rss


def pages(size):
    memory = mmap.mmap(-1, size)
    memory.write(b'x' * size)
    return memory


@pytest.mark.parametrize('leak, found_by', [
    (lambda features: features[0], {'counts', 'held'}),
    (lambda features: features[0].new_zeros(1), {'counts', 'held'}),
    # Bytes that no tensor of Python's holds, as an operator in C++ might keep them: pages of
    # their own. On the heap they would fill its free space first.
    (None, {'rss'}),
], ids=['features', 'number', 'bytes'])
def test_leaks_are_found(leak, found_by, many):
    """A leak of each kind, put in, is seen by what has to see it."""
    per_step = many(2**22, 2**20)
    leak = leak or (lambda features: pages(per_step))
    counts, held, rss = Work(training=True, leak=leak).readings(many(30, 120))
    seen = {name for name, rising in dict(
        counts=len(set(counts)) > 1, held=len(set(held)) > 1, rss=rises(rss, per_step)).items()
        if rising}
    assert seen >= found_by


def test_what_rises():
    noise = random.Random(0)
    flat = [10**9 + noise.randrange(-10**7, 10**7) for _ in range(90)]
    assert not rises(flat, 2**20)
    assert not rises([10**9] * 40 + [2 * 10**9] * 50, 2**20)  # one jump, as heaps do
    assert rises([x + 2**20 * i for i, x in enumerate(flat)], 2**20)
    assert rises([2**20 * i for i in range(24)], 2**20)
    assert not rises([-2**20 * i for i in range(24)], 2**20)
