"""Functions of single tokens, a block of tokens at a time.

An FFN's hidden layer is four times its input. In blocks it stays in a CPU's cache, and nothing
of it is kept for backward, which computes it again: of ResT-Small's FFNs that is a twentieth of
the arithmetic of a training step.
"""
from typing import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Elements of a block's hidden layer.
BLOCK = 2**21


def by_blocks(hidden: Callable[[Tensor], Tensor], params: Sequence[nn.Parameter],
              last: nn.Linear, x: Tensor) -> Tensor:
    """``last(hidden(x))`` for tokens (B, N, C), without holding the hidden layer.

    It is computed at once on a GPU, while a graph is compiled or exported, and where the last
    layer is not just a linear one (but has hooks, or is of a class of its own).

    Args:
        hidden (Callable): Maps tokens (n, C) to the hidden layer, each for itself.
        params (Sequence[nn.Parameter]): All that it uses.
        last (nn.Linear): Maps the hidden layer to the output.
        x (Tensor): Tokens.
    """
    rows = max(BLOCK // last.in_features, 1)
    if x.is_cuda or _is_graph() or len(x) * x.shape[1] <= rows or not _is_linear(last):
        return last(hidden(x))
    return _ByBlocks.apply(hidden, rows, x, last.weight, last.bias, *params)


def _is_linear(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks
                                             or layer._backward_hooks)


def _is_graph() -> bool:
    if torch.jit.is_tracing():
        return True
    if hasattr(torch.compiler, 'is_compiling'):
        return torch.compiler.is_compiling()
    return torch._dynamo.is_compiling()  # before torch 2.3


def _parts(length: int, rows: int) -> Iterator[slice]:
    """Slices of up to so many rows, all of about the same length."""
    count = -(-length // rows)
    for i in range(count):
        yield slice(length * i // count, length * (i + 1) // count)


class _ByBlocks(torch.autograd.Function):

    @staticmethod
    def forward(ctx, hidden, rows, x, weight, bias, *params):
        ctx.hidden, ctx.rows = hidden, rows
        ctx.autocast = dict(
            dtype=torch.get_autocast_cpu_dtype(), enabled=torch.is_autocast_cpu_enabled())
        ctx.save_for_backward(x, weight, bias, *params)
        tokens = x.flatten(0, 1)
        out = None
        for part in _parts(len(tokens), rows):
            block = F.linear(hidden(tokens[part]), weight, bias)
            if out is None:
                out = block.new_empty((len(tokens), block.shape[-1]))
            out[part] = block
        return out.view(*x.shape[:2], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, bias, *params = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        tokens, grad = x.flatten(0, 1), grad.flatten(0, 1)
        dx = torch.empty_like(tokens)
        sums = [torch.zeros_like(p) if p is not None and n else None
                for p, n in zip((weight, bias, *params), needed)]
        wanted = [p for p, n in zip(params, needed[2:]) if n]
        with torch.autocast('cpu', **ctx.autocast):
            for part in _parts(len(tokens), ctx.rows):
                block = tokens[part].detach().requires_grad_()
                with torch.enable_grad():
                    hidden = ctx.hidden(block)
                g = grad[part].to(hidden.dtype)
                dx[part], *grads = torch.autograd.grad(
                    hidden, [block, *wanted], g @ weight.to(hidden.dtype))
                if sums[0] is not None:
                    sums[0] += g.t() @ hidden.detach()
                if sums[1] is not None:
                    sums[1] += g.sum(0)
                for total, more in zip([s for s in sums[2:] if s is not None], grads):
                    total += more
        return None, None, dx.view(x.shape), *sums
