"""Compiles the Triton kernels for a GPU that is not there: compile_kernels.py CAPABILITY CASES.

CASES is JSON, a list of [dtype, h, d, mixed, normalize]. Each case is a call of the operators,
forward and backward, whose launches end after the compiler. So what is compiled is what would
run: with the same tiles, types, and alignment of pointers, strides and sizes.

Prints what the compiler says of each kernel, as JSON.
"""
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget

from mmrest.ops.emsa import fused

CUOBJDUMP = Path(triton.__file__).with_name('backends') / 'nvidia/bin/cuobjdump'


class Driver:
    """What a launch asks its driver, up to the end of the compiler."""

    def __init__(self, capability):
        self.target = GPUTarget('cuda', capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return self.target


def figures(compiled):
    """Bytes of stack of a thread, and of shared memory of a program.

    aligned: no 16-bit number is read or written on its own.
    """
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(compiled.asm['cubin'])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, '-res-usage', file.name], check=True,
                               capture_output=True, text=True).stdout
    return dict(stack=int(re.search(r'STACK:(\d+)', usage)[1]),
                shared=compiled.metadata.shared,
                aligned=not re.search(r'(ld|st)\.global\S*\.b16', compiled.asm['ptx']))


def main():
    capability = int(sys.argv[1])
    triton.runtime.driver.set_active(Driver(capability))
    fused._capability = lambda device: capability
    found = {}
    run = triton.JITFunction.run

    def compile_only(kernel, *args, **kwargs):
        compiled = run(kernel, *args, **dict(kwargs, warmup=True))
        found.setdefault(f'{kernel.__name__} {case}', []).append(compiled)

    triton.JITFunction.run = compile_only
    for case in json.loads(sys.argv[2]):
        dtype, h, d, mixed, normalize = case
        torch.backends.cuda.matmul.allow_tf32 = dtype == 'tf32'
        dtype = torch.float32 if dtype == 'tf32' else getattr(torch, dtype)
        # As ResT's linear layers give them, keys and values side by side.
        q, grad = torch.randn(2, 2, 130, h, d, dtype=dtype).transpose(2, 3)
        k, v = torch.randn(2, 100, 2, h, d, dtype=dtype).permute(2, 0, 3, 1, 4)
        args = q, k, v, torch.randn(h, h) if mixed else None, d**-0.5, normalize
        forward = fused.triton_forward(*args, 1e-5)
        fused.triton_backward(grad, *forward, *args)
    print(json.dumps({name: [figures(kernel) for kernel in set(kernels)]
                      for name, kernels in found.items()}))


if __name__ == '__main__':
    main()
