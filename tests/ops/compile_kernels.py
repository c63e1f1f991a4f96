"""Compiles the Triton kernels without a GPU: compile_kernels.py CAPABILITY.

Prints the shared memory that each kernel takes, in bytes, as JSON.
"""
import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmrest.ops.emsa import fused as kernels


def compile_for(target, kernel, floats, dtype, constants, num_warps):
    types = dict(scale='fp32', N='i32', M='i32')
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = 'constexpr'
        else:
            signature[name] = types.get(name) or '*' + ('fp32' if name in floats else dtype)
    source = ASTSource(kernel, signature, {
        (kernel.arg_names.index(name), ): value for name, value in constants.items()})
    compiled = triton.compile(source, target=target, options=dict(num_warps=num_warps))
    return compiled.metadata.shared


def main():
    target = GPUTarget('cuda', int(sys.argv[1]), 32)
    shared = {}
    for dtype, bytes_, h, d, extra in (
        ('bf16', 2, 2, 64, {}), ('bf16', 2, 8, 64, {}), ('fp16', 2, 8, 96, {}),
        ('fp32', 4, 8, 96, {}), ('bf16', 2, 1, 16, dict(MIX=False, NORMALIZE=False, mix=None)),
        ('bf16', 2, 2, 60, dict(N=1, M=1)),
    ):
        common = dict(
            h=h, d=d, PRECISION='ieee', **{'MIX': True, 'NORMALIZE': True, **extra})
        common['D'] = max(triton.next_power_of_2(d), 16)
        floats = {'mean', 'mix', 'squares', 'lse', 'delta', 'r', 'slope', 'dmix'}
        for one_block in (True, False):
            blocks = kernels.forward_blocks(d, bytes_)
            constants = dict(common, ONE_BLOCK=one_block, **blocks)
            shared[f'forward {dtype} {h} {d} {one_block} {extra}'] = compile_for(
                target, kernels.forward_kernel, floats | {'out'}, dtype, constants, 4)
        blocks = kernels.backward_blocks(h * d)
        for kernel in (kernels.key_value_kernel, kernels.query_kernel):
            shared[f'{kernel.__name__} {dtype} {h} {d} {extra}'] = compile_for(
                target, kernel, floats, dtype, dict(common, **blocks), 8)
    print(json.dumps(shared))


if __name__ == '__main__':
    main()
