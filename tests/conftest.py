import io
import logging
import os
from importlib.util import find_spec

import pytest
import torch
from mmengine.logging import MMLogger

from . import quick_configs  # noqa: F401

# Triton's interpreter runs the kernels on a CPU. Triton reads this when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')


@pytest.fixture
def log():
    """What a run's logger prints."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield stream
    logger.removeHandler(handler)


def pytest_addoption(parser):
    parser.addoption('--torture', action='store_true', help='run the slow tests, and no others')


def pytest_collection_modifyitems(config, items):
    wanted, others = [], []
    for item in items:
        is_slow = item.get_closest_marker('slow') is not None
        (wanted if is_slow == config.getoption('--torture') else others).append(item)
        if 'triton' in item.name and not find_spec('triton'):  # as on Windows and macOS
            item.add_marker(pytest.mark.skip('triton is not installed'))
    items[:] = wanted
    config.hook.pytest_deselected(items=others)
