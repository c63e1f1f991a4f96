"""Functions of single tokens, a block of tokens at a time.

An FFN's hidden layer is four times its input. In blocks it stays in a CPU's cache, and nothing
of it is kept for backward, which computes it again: of ResT-Small's FFNs that is a fifteenth of
the arithmetic of a training step, and memory traffic saves the time that it takes.
"""
from typing import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Elements of a block's hidden layer.
BLOCK = 2**20


def by_blocks(function: Callable[[Tensor], Tensor], x: Tensor, width: int,
              params: Sequence[nn.Parameter]) -> Tensor:
    """``function(x)`` for tokens (B, N, C), without holding all that it makes on the way.

    On a GPU, and while a graph is compiled or exported, it is ``function(x)`` at once.

    Args:
        function (Callable): Maps tokens (n, C) to (n, C), each for itself.
        x (Tensor): Tokens.
        width (int): Elements that the function holds of each token.
        params (Sequence[nn.Parameter]): All that the function uses.
    """
    rows = max(BLOCK // width, 1)
    if x.is_cuda or _is_graph() or x.numel() <= rows * x.shape[-1]:
        return function(x)
    return _ByBlocks.apply(function, rows, x, *params)


def _is_graph() -> bool:
    if torch.jit.is_tracing():
        return True
    if hasattr(torch.compiler, 'is_compiling'):
        return torch.compiler.is_compiling()
    return torch._dynamo.is_compiling()  # before torch 2.3


class _ByBlocks(torch.autograd.Function):

    @staticmethod
    def forward(ctx, function, rows, x, *params):
        ctx.function, ctx.rows = function, rows
        ctx.autocast = dict(
            dtype=torch.get_autocast_cpu_dtype(), enabled=torch.is_autocast_cpu_enabled())
        ctx.save_for_backward(x, *params)
        tokens = x.flatten(0, 1)
        out = None
        for start in range(0, len(tokens), rows):
            block = function(tokens[start:start + rows])
            if out is None:
                out = block.new_empty(tokens.shape)
            out[start:start + rows] = block
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, *params = ctx.saved_tensors
        tokens, grad = x.flatten(0, 1), grad.flatten(0, 1)
        dx = torch.empty_like(tokens)
        wanted = [p for p, needed in zip(params, ctx.needs_input_grad[3:]) if needed]
        sums = [torch.zeros_like(p) for p in wanted]
        with torch.enable_grad(), torch.autocast('cpu', **ctx.autocast):
            for start in range(0, len(tokens), ctx.rows):
                part = slice(start, start + ctx.rows)
                block = tokens[part].detach().requires_grad_()
                dx[part], *grads = torch.autograd.grad(
                    ctx.function(block), [block, *wanted], grad[part])
                for total, more in zip(sums, grads):
                    total += more
        sums = iter(sums)
        dparams = [next(sums) if needed else None for needed in ctx.needs_input_grad[3:]]
        return None, None, dx.view(x.shape), *dparams
