import os

import pytest
import torch

# Triton's interpreter runs the kernels on a CPU. Triton reads this when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')


def pytest_addoption(parser):
    parser.addoption('--torture', action='store_true',
                     help='run the tests that have a long version, in that version')


def pytest_collection_modifyitems(config, items):
    if config.getoption('--torture'):
        short = [item for item in items if 'many' not in item.fixturenames]
        items[:] = [item for item in items if 'many' in item.fixturenames]
        config.hook.pytest_deselected(items=short)


@pytest.fixture(scope='session')
def many(request):
    """``many(short, long)``: how much to try in `make test`, and in `make torture`."""
    torture = request.config.getoption('--torture')
    return lambda short, long: long if torture else short
