import os

import pytest
import torch

from . import quick_configs  # noqa: F401

# Triton's interpreter runs the kernels on a CPU. Triton reads this when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')


def pytest_addoption(parser):
    parser.addoption('--torture', action='store_true',
                     help='run the tests that have a long version, in that version')


def pytest_collection_modifyitems(config, items):
    if config.getoption('--torture'):
        others = [item for item in items if not is_slow(item)]
        items[:] = [item for item in items if is_slow(item)]
    else:
        others = [item for item in items if item.get_closest_marker('slow')]
        items[:] = [item for item in items if not item.get_closest_marker('slow')]
    config.hook.pytest_deselected(items=others)


def is_slow(item):
    return 'many' in item.fixturenames or item.get_closest_marker('slow')


@pytest.fixture(scope='session')
def many(request):
    """``many(short, long)``: how much to try in `make test`, and in `make torture`."""
    torture = request.config.getoption('--torture')
    return lambda short, long: long if torture else short
