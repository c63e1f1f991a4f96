import os

import pytest
import torch

# Triton's kernels run on a CPU so; it has to be said before anything imports Triton.
if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')


def pytest_addoption(parser):
    parser.addoption('--torture', action='store_true', help='long versions of tests/torture')


@pytest.fixture(scope='session')
def many(request):
    """``many(short, long)``: how much to try in `make test`, and in `make torture`."""
    torture = request.config.getoption('--torture')
    return lambda short, long: long if torture else short
