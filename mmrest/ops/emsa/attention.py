import os
import warnings
from functools import lru_cache
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from . import chunked, reference
from .custom_op import check

BACKENDS = {'reference': reference, 'chunked': chunked}
try:
    from . import fused
except ImportError as error:  # there are platforms without Triton
    NO_TRITON = f'the package triton cannot be imported ({error})'
else:
    NO_TRITON = ''
    BACKENDS['triton'] = fused


def choose_backend(backend: Optional[str]) -> str:
    """The backend of :func:`emsa_attention` that an argument means.

    Args:
        backend (str, optional): 'auto', 'reference', 'chunked' or 'triton'. ``None`` means
            the environment variable MMREST_ATTENTION_BACKEND, or 'auto' without it.

    Raises:
        ValueError: There is no such backend.
        RuntimeError: It is 'triton', which cannot be imported here.
    """
    if backend is None:
        backend = os.environ.get('MMREST_ATTENTION_BACKEND', 'auto')
    if backend == 'triton' and NO_TRITON:
        raise RuntimeError(f'{backend=} cannot run: {NO_TRITON}')
    if backend != 'auto' and backend not in BACKENDS:
        raise ValueError(f"{backend=} must be 'auto' or one of {sorted(BACKENDS)}")
    return backend


def describe_backend(backend: Optional[str] = None) -> str:
    """What :func:`emsa_attention` runs on with this argument, and why: one sentence for a log.

    Args and errors are those of :func:`choose_backend`.
    """
    backend = choose_backend(backend)
    if backend != 'auto':
        return f"Attention runs on {backend!r}, because it was asked for."
    if NO_TRITON:
        return f"Attention runs on 'chunked', because {NO_TRITON}."
    return (
        "Attention runs on 'triton' on NVIDIA GPUs of compute capability 8.0 or more, with 2, "
        "4 or 8 heads of up to 128 channels (in float32, 4 of up to 96, 8 of up to 64), "
        "because on an H200 it needs a fraction of eager PyTorch's memory and, but for 8 heads "
        "in float32, of its time, and on 'chunked' elsewhere.")


def emsa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mix: Optional[Tensor] = None,
    bias: Optional[Tensor] = None,
    *,
    scale: Optional[float] = None,
    normalize: bool = True,
    eps: float = 1e-5,
    backend: Optional[str] = None,
) -> Tensor:
    """``IN(softmax(Conv(scale * q k^T))) v``, equation (4) of the ResT paper.

    Without mixing and normalisation this is plain attention. PyTorch's own
    ``scaled_dot_product_attention`` computes it, except for 'reference', and on a CPU for
    'chunked' and where :func:`~mmrest.ops.emsa.chunked.beats_plain` says so.

    Args:
        q (Tensor): Queries, (B, h, N, d). All tensors may have any strides.
        k (Tensor): Keys, (B, h, M, d), M at least 1.
        v (Tensor): Values, (B, h, M, d).
        mix (Tensor, optional): Weight of the 1x1 convolution over heads, (h, h).
            ``None`` leaves the convolution out.
        bias (Tensor, optional): Its bias, (h,). It adds a constant to each row of scores,
            which softmax ignores: it changes no output and its gradient is zero.
        scale (float, optional): Factor on the scores, above 0. ``None`` means ``d ** -0.5``.
        normalize (bool): Whether to normalise each head's map to mean 0 and variance 1 over
            its N x M elements (instance normalisation without parameters).
        eps (float): Added to that variance, above 0. Where N M = 1 the result is zero.
        backend (str, optional): 'reference' (the equations, with the whole map in memory),
            'chunked' (PyTorch on any device, keeps no N x M map), 'triton' (fused CUDA
            kernels) or 'auto': on CUDA 'triton' where :func:`describe_backend` says so,
            otherwise 'chunked', and 'reference' during an export, whose graph has to run
            without mmrest, and inside ``torch.func``, which needs it. All can be
            differentiated again, with the whole map in memory; PyTorch's own attention only
            in ``sdpa_kernel(SDPBackend.MATH)``. ``None``: see :func:`choose_backend`.

    Returns:
        Tensor: (B, h, N, d) in v's type.

    Raises:
        TypeError: The tensors are integers, q, k and v differ in dtype, or scale is a tensor
            that needs a gradient.
        ValueError: Shapes or devices do not fit each other, or there is no such backend.
        RuntimeError: The backend cannot run here.
    """
    if not v.is_floating_point():  # attention below 1 would become 0
        raise TypeError(f'v must be of a floating-point dtype, not {v.dtype}')
    if isinstance(scale, Tensor) and scale.requires_grad:
        raise TypeError('scale must be a number, it gets no gradient: multiply q by it instead')
    backend = choose_backend(backend)
    exporting, in_func = _is_exporting(), _in_torch_func()
    if backend == 'auto' and (exporting or in_func):
        backend = 'reference'
    if not exporting:  # a trace would take the sizes' comparison for a constant
        check(q, k, v, mix)
    scale = q.shape[-1]**-0.5 if scale is None else scale
    plain = mix is None and not normalize and backend != 'reference'
    by_blocks = backend == 'chunked' or backend == 'auto' and chunked.beats_plain(q, k)
    if plain and not exporting and (q.is_cuda or not by_blocks):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    if backend == 'auto':
        backend = _choose(q)
    reason = BACKENDS[backend].why_not(q)
    if in_func and backend != 'reference':
        reason = "torch.func needs backend='reference' or 'auto'"
    if reason:
        raise RuntimeError(f'{backend=} cannot run: {reason}')
    return BACKENDS[backend].attention(q, k, v, mix, bias, scale, normalize, eps)


def _choose(q: Tensor) -> str:
    if not q.is_cuda:
        return 'chunked'
    reason = NO_TRITON or BACKENDS['triton'].why_not(q)
    if reason:
        _warn(reason)
        return 'chunked'
    return 'triton'


# Dynamo replaces torch.compiler.is_exporting() by True, in torch.compile too. It calls a
# function with a constant result as Python does, and puts the result into the graph.
@torch.compiler.assume_constant_result
def _is_exporting() -> bool:
    """Whether torch.export, torch.onnx or torch.jit.trace is writing a graph."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


@torch.compiler.assume_constant_result
def _in_torch_func() -> bool:
    # A private name. Without it, PyTorch's own error says what torch.func needs.
    is_active = getattr(torch._C, '_are_functorch_transforms_active', None)
    return is_active is not None and is_active()


@torch.compiler.assume_constant_result
def _warn(reason: str) -> None:
    _warn_once(reason)


@lru_cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"EMSA runs without its CUDA kernels, as backend='chunked': {reason}", stacklevel=2)
