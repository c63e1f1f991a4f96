from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import check_bool, check_number
from .chunked import Chunked
from .reference import reference_attention

try:
    from triton import __version__ as version
except ImportError as error:  # there are platforms without Triton
    NO_TRITON = f'the package triton cannot be imported ({error})'
else:
    NO_TRITON = ''
    if int(version.split('.')[0]) < 3:
        NO_TRITON = f'triton {version} is older than 3.0'
triton = None
if not NO_TRITON:
    from . import triton

BACKENDS = ('auto', 'reference', 'chunked', 'triton')


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
    backend: str = 'auto',
) -> Tensor:
    """``IN(softmax(Conv(scale * q k^T))) v``, equation (4) of the ResT paper.

    Without mixing and normalisation this is plain attention, which PyTorch's own
    ``scaled_dot_product_attention`` computes, unless it is 'chunked' on a CPU.

    Args:
        q (Tensor): Queries, (B, h, N, d), of any strides, as all that follow.
        k (Tensor): Keys, (B, h, M, d).
        v (Tensor): Values, (B, h, M, d).
        mix (Tensor, optional): Weight of the 1x1 convolution over heads, (h, h).
            ``None`` leaves the convolution out.
        bias (Tensor, optional): Its bias, (h,). A constant per row of scores, to
            which softmax is blind: it changes no output and its gradient is zero.
        scale (float, optional): Factor on the scores, above 0; ``d ** -0.5`` if ``None``.
        normalize (bool): Normalise each head's map to mean 0 and variance 1 over
            its N x M elements (instance normalisation without parameters).
        eps (float): Added to that variance, above 0. Where N M = 1 the result is zero.
        backend (str): 'reference' (the equations, the whole map in memory), 'chunked'
            (PyTorch on any device, no N x M map kept), 'triton' (fused kernels on CUDA)
            or 'auto': 'triton' where it can run, else 'chunked', and 'reference'
            while a graph is exported, which has to run without mmrest.

    Returns:
        Tensor: (B, h, N, d) in v's type.

    Raises:
        TypeError: An argument is not of the kind above, or the tensors' types differ.
        ValueError: Shapes or devices do not fit each other, a number is out of its range
            or there is no such backend.
        RuntimeError: The backend asked for cannot run here.
    """
    if not torch.jit.is_tracing():  # which warns of every comparison of sizes
        _check_tensors(q, k, v, mix, bias)
    if scale is not None:
        check_number('scale', scale, above=0)
    check_bool('normalize', normalize)
    check_number('eps', eps, above=0)
    check_backend(backend)
    scale = q.shape[-1]**-0.5 if scale is None else scale
    if backend == 'auto':
        backend = _choose(q)
    if mix is None and not normalize and (q.is_cuda or backend != 'chunked'):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    args = (q, k, v, mix, bias, scale, normalize, eps)
    if backend == 'reference':
        return reference_attention(*args)
    if backend == 'chunked':
        return Chunked.apply(*args)
    reason = triton.why_not(q)
    if reason:
        raise RuntimeError(f"backend='triton' cannot run: {reason}")
    return triton.Triton.apply(*args)


def check_backend(backend: str) -> None:
    """Raise where there is no such backend, or it cannot run on this machine.

    Args:
        backend (str): As :func:`emsa_attention` takes it.

    Raises:
        ValueError: There is no such backend.
        RuntimeError: It is 'triton', and the package is not installed.
    """
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(f'backend={backend!r} must be one of {BACKENDS}')
    if backend == 'triton' and triton is None:
        raise RuntimeError(f"backend='triton' cannot run: {NO_TRITON}")


def describe_backend(backend: str) -> str:
    """What a model's attention will run on, in words for its log."""
    if backend != 'auto':
        return f"backend '{backend}'"
    if triton is None:
        return f"backend 'auto', which is 'chunked' ({NO_TRITON})"
    return "backend 'auto', which is 'triton' on CUDA, 'chunked' elsewhere"


def _choose(q: Tensor) -> str:
    if _is_exporting():
        return 'reference'
    if q.is_cuda and triton is not None and triton.why_not(q) is None:
        return 'triton'
    return 'chunked'


def _is_exporting() -> bool:
    """Whether torch.export or the tracer of torch.jit and torch.onnx is at work."""
    is_exporting = getattr(torch.compiler, 'is_exporting', lambda: False)
    return is_exporting() or torch.jit.is_tracing()


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, mix: Optional[Tensor],
                   bias: Optional[Tensor]) -> None:
    for name, x in (('q', q), ('k', k), ('v', v), ('mix', mix), ('bias', bias)):
        if x is None and name in ('mix', 'bias'):
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f'{name}={x!r} must be a tensor')
        if not x.is_floating_point():
            raise TypeError(f"{name}'s dtype {x.dtype} must be a floating-point one")
        if x.device != q.device:
            raise ValueError(f"{name}'s device '{x.device}' must be that of q, '{q.device}'")
    for name, x in (('q', q), ('k', k), ('v', v)):
        if x.ndim != 4:
            raise ValueError(f'{name} of shape {tuple(x.shape)} must be (B, h, tokens, d)')
        if x.dtype != q.dtype:
            raise TypeError(f"{name}'s dtype {x.dtype} must be that of q, {q.dtype}")
    B, h, _, d = q.shape
    if k.shape[:2] != (B, h) or k.shape[2] == 0 or k.shape[3] != d:
        raise ValueError(f'k of shape {tuple(k.shape)} must be ({B}, {h}, M, {d}), M from 1 '
                         f'up, to fit q of shape {tuple(q.shape)}')
    if v.shape != k.shape:
        raise ValueError(f'v of shape {tuple(v.shape)} must have the shape of k, '
                         f'{tuple(k.shape)}')
    if mix is not None and mix.shape != (h, h):
        raise ValueError(f'mix of shape {tuple(mix.shape)} must be ({h}, {h}): q has {h} heads')
    if bias is not None and bias.shape != (h, ):
        raise ValueError(f'bias of shape {tuple(bias.shape)} must be ({h},): q has {h} heads')
