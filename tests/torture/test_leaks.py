"""Memory does not rise over hundreds of steps at varying sizes.

Three numbers are read: the tensors that live, the bytes of their storages, and the resident
set. The first two must stay exactly the same. The resident set jumps, so it is judged by the
medians of the thirds of the run: a leak raises both the second above the first and the third
above the second. Noise does not, nor does a heap that jumps once to its final size.
"""
import gc
import random
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
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
    """Number of tensors that live, and bytes of their storages, each counted once."""
    gc.collect()
    storages, count = {}, 0
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            count += 1
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return count, sum(storages.values())


def step(model, optimizer, image):
    """A training step, or an inference."""
    with torch.set_grad_enabled(model.training):
        features = model(image)
    if model.training:
        optimizer.zero_grad()
        sum(x.square().mean() for x in features).backward()
        optimizer.step()


def readings(training, steps):
    """Tensors and their bytes five times, and the resident set after each step."""
    torch.manual_seed(0)
    draw = random.Random(0)
    model = ResT(ARCH, out_indices=None, drop_path_rate=0.1).train(training)
    optimizer = torch.optim.AdamW(model.parameters())
    counts, held, rss = [], [], []
    for i in range(steps):
        step(model, optimizer, torch.randn(2, 3, draw.choice(SIDES), draw.choice(SIDES)))
        if i < steps // 5:  # optimizer states, caches and heap grow until then
            continue
        rss.append(resident())
        if i % (steps // 5) == 0:
            count, size = live()
            counts.append(count)
            held.append(size)
    return counts, held, rss


def rises(values, per_step):
    """Whether the medians of thirds rise twice, by at least half of ``per_step`` a step."""
    third = len(values) // 3
    first, second, last = (
        statistics.median(values[i * third:(i + 1) * third]) for i in range(3))
    least = per_step * third / 2
    return second - first > least and last - second > least


@pytest.mark.parametrize('training', [True, False], ids=['training', 'inference'])
def test_memory_is_flat(training, many):
    steps = many(30, 200) if training else many(60, 500)
    # A process of its own: what other tests left may be freed meanwhile.
    with ProcessPoolExecutor(1, get_context('spawn')) as process:
        counts, held, rss = process.submit(readings, training, steps).result()
    assert len(set(counts)) == 1, counts
    assert len(set(held)) == 1, held
    assert not rises(rss, many(2**22, 2**20)), rss
