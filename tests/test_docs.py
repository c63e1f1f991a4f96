"""Python in the documentation runs."""
import re
from pathlib import Path

import torch

DOCS = Path(__file__).parents[1] / 'docs'


def blocks(name):
    return re.findall(r'```python\n(.*?)```', (DOCS / name).read_text(), re.DOTALL)


def test_emsa_in_a_network_of_ones_own():
    scope = {}
    code, = blocks('own_network.md')
    exec(code, scope)
    assert scope['out'].shape == scope['image'].shape
    assert torch.isfinite(scope['image'].grad).all() and scope['image'].grad.abs().max() > 0
