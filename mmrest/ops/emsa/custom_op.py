"""What the backends without an N x M map share: their operators and their gradient."""
import inspect
from typing import Callable, Optional

import torch
from torch import Tensor
from torch.utils import flop_counter

from . import reference


def opaque(name: str, fake: Callable) -> Callable:
    """Make a function one node of a compiled graph, whose loops are not unrolled.

    PyTorch's ``FlopCounterMode`` counts the multiply-adds of the node.

    Args:
        name (str): Its name among ``torch.ops.mmrest``.
        fake (Callable): Takes the same arguments, returns empty tensors like the results.
    """

    def decorate(function: Callable) -> Callable:
        op = torch.library.custom_op(f'mmrest::{name}', function, mutates_args=())
        op.register_fake(fake)

        def flops(*shapes, out_shape, **kwargs) -> int:
            return _flops(**inspect.signature(function).bind(*shapes, **kwargs).arguments)

        flop_counter.register_flop_formula(getattr(torch.ops.mmrest, name))(flops)
        return op

    return decorate


def _flops(q, k, mix, grad=None, **rest) -> int:
    """2 for each multiply-add, from the shapes of an operator's tensors."""
    (B, h, N, d), M, mixed = q, k[2], mix[0] if mix else 0
    # Forward: scores, mixing, map by values. Backward: all but the last again, and their
    # gradients.
    each = 2 * d + mixed if grad is None else 5 * d + 3 * mixed
    return 2 * B * h * N * M * each


def _count_plain_attention(name: str, formula: Callable, inputs: int) -> None:
    """PyTorch's ``FlopCounterMode`` does not know its own plain attention on a CPU."""
    op = getattr(torch.ops.aten, name, None)
    if op is not None and op not in flop_counter.flop_registry:
        flop_counter.register_flop_formula(op)(
            lambda *shapes, **kwargs: formula(*shapes[:inputs]))


_SDPA = '_scaled_dot_product_flash_attention_for_cpu'
_count_plain_attention(_SDPA, flop_counter.sdpa_flop_count, 3)
_count_plain_attention(f'{_SDPA}_backward', flop_counter.sdpa_backward_flop_count, 4)


def empty_heads(like: Tensor, dtype: Optional[torch.dtype] = None) -> Tensor:
    """An empty (B, h, N, d) whose tokens lie as linear layers want them, (B, N, h d)."""
    B, h, N, d = like.shape
    return like.new_empty((B, N, h, d), dtype=dtype).transpose(1, 2)


class EMSAFunction(torch.autograd.Function):
    """Attention by a backend's two operators, forward and backward."""

    @staticmethod
    def forward(ctx, forward, backward, q, k, v, mix, bias, scale, normalize, eps):
        out, *statistics = forward(q, k, v, mix, scale, normalize, eps)
        ctx.save_for_backward(q, k, v, mix, bias, out, *statistics)
        ctx.operator, ctx.options = backward, (scale, normalize, eps)
        # Dynamo of torch 2.11 takes ``out.to(out.dtype)`` for another tensor, and its gradient
        # for zero.
        return out if out.dtype == v.dtype else out.to(v.dtype)

    @staticmethod
    def backward(ctx, grad):
        q, k, v, mix, bias, *saved = ctx.saved_tensors
        *gradients, dmix = EMSAGradient.apply(
            ctx.operator, saved, ctx.options, grad, q, k, v, mix)
        # Softmax ignores the bias. Its gradient is zero, not None: DistributedDataParallel
        # stops at parameters without a gradient.
        dbias = None if bias is None else torch.zeros_like(bias)
        dmix = None if mix is None else dmix
        return (None, None, *gradients, dmix, dbias, None, None, None)


class EMSAGradient(torch.autograd.Function):
    """The gradients of q, k, v and mix. Theirs is that of the equations, with the whole map.

    An ordinary backward has no grad mode, and keeps nothing here.
    """

    @staticmethod
    def forward(ctx, operator, saved, options, grad, q, k, v, mix):
        ctx.save_for_backward(grad, q, k, v, mix)
        ctx.set_materialize_grads(False)  # a penalty on dq alone is half of the work
        ctx.options = scale, normalize, _ = options
        return operator(grad, *saved, q, k, v, mix, scale, normalize)

    @staticmethod
    def backward(ctx, *grads):
        again = torch.is_grad_enabled()  # for a third derivative
        if all(grad is None for grad in grads):
            return (None, ) * 8
        tensors = ctx.saved_tensors
        with torch.enable_grad(), torch.autocast(tensors[0].device.type, enabled=False):
            # Aliases, because k, say, may have been computed from q.
            inputs = [x if x is None else x.view_as(x) for x in tensors]
            wide = torch.promote_types(tensors[0].dtype, torch.float32)
            grad, *rest = (x if x is None else x.to(wide) for x in inputs)
            out = reference.attention(*rest, None, *ctx.options)
            pairs = [(x, g) for x, g in zip(inputs[1:], grads) if g is not None]
            first = torch.autograd.grad(out, [x for x, _ in pairs], grad, create_graph=True)
        wanted = [i for i, need in enumerate(ctx.needs_input_grad[3:]) if need]
        found = torch.autograd.grad(
            first, [inputs[i] for i in wanted], [g for _, g in pairs], create_graph=again,
            allow_unused=True)
        second = dict(zip(wanted, found))
        return (None, None, None, *map(second.get, range(5)))


def check(q: Tensor, k: Tensor, v: Tensor, mix: Optional[Tensor]) -> None:
    """Raise unless q, k, v and mix fit. Other sizes would give wrong numbers, or broadcast."""
    (B, h, _, d), M = q.shape, k.shape[2]
    shapes = dict(k=(B, h, M, d), v=(B, h, M, d), mix=(h, h))
    for (name, shape), x in zip(shapes.items(), (k, v, mix)):
        if x is not None and (x.shape != shape or x.device != q.device):
            raise ValueError(
                f"{name} of shape {tuple(x.shape)} on '{x.device}' must be of shape {shape} on "
                f"'{q.device}', to fit q of shape {tuple(q.shape)}")
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f'q, k and v must have one dtype, not {q.dtype}, {k.dtype}, {v.dtype}')
    if M == 0:
        raise ValueError(f'k of shape {tuple(k.shape)} must have at least one key')
