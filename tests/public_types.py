"""What a type checker says of mmrest's public API; `make lint` runs mypy on this file.

The comments are part of the test: an ignored error that is none is an error.
"""
from typing import Dict, Tuple

import torch
from torch import Tensor

from mmrest import EMSA, ResT, __version__
from mmrest.models.checkpoint import load_pretrained
from mmrest.ops import choose_backend, describe_backend, emsa_attention
from mmrest.safe_reading import read_state_dict, register_safe_loader


def right() -> None:
    """All of this is as the signatures say."""
    model = ResT('small', out_indices=(1, 2, 3), drop_path_rate=0.1, norm_in_trunk=True)
    custom = ResT(dict(embed_dims=(16, ), depths=(1, ), num_heads=(1, ), sr_ratios=(1, )))
    features: Tuple[Tensor, ...] = model.forward(torch.zeros(1, 3, 64, 64))
    model.train(False).init_weights()
    depth: Tuple[int, int] = custom.get_layer_depth('stem')
    attention = EMSA(64, num_heads=2, sr_ratio=4, backend='chunked')
    tokens: Tensor = attention.forward(features[0], (8, 8))
    q, k, v = attention.project(tokens, (8, 8))
    mix, bias = attention.mixing(q)
    backend: str = choose_backend(None)
    print(describe_backend(backend).upper())
    out: Tensor = emsa_attention(q, k, v, mix, bias, scale=0.1, eps=1e-5, backend=backend)
    state: Dict[str, Tensor] = read_state_dict('file.pth')
    load_pretrained(model, 'file.pth', prefix='backbone.')
    register_safe_loader()
    print(__version__.upper(), depth, out, state)


def wrong() -> None:
    """None of this is."""
    ResT(7)  # type: ignore[arg-type]
    ResT('lite', out_indices='0')  # type: ignore[arg-type]
    ResT('lite', stems='rest')  # type: ignore[arg-type]
    EMSA('64', num_heads=2)  # type: ignore[arg-type]
    EMSA(64)  # type: ignore[call-arg]
    emsa_attention([1], None, None)  # type: ignore[arg-type]
    read_state_dict(3)  # type: ignore[arg-type]
