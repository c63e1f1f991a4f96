"""What runs an exported backbone: onnxruntime and OpenVINO."""
import subprocess
import sys
from typing import Callable

import numpy as np
import torch

from benchmarks.models import ROOT

Run = Callable[[np.ndarray], object]
EXPORT = """
import sys
from benchmarks.models import backbone
from mmrest.deploy import export
export(backbone(sys.argv[1]).eval(), sys.argv[2], backbone=True)
"""


def export(name: str) -> str:
    """Path of a backbone as ONNX, written once, by a process that is not measured."""
    path = ROOT / f'work_dirs/benchmarks/{name}.onnx'
    if not path.exists():
        subprocess.run([sys.executable, '-c', EXPORT, name, str(path)], cwd=ROOT, check=True)
    return str(path)


def onnxruntime(path: str) -> Run:
    """With the options of tools/deployment/run_onnx.py."""
    from onnxruntime import InferenceSession, SessionOptions
    options = SessionOptions()
    options.enable_mem_pattern = False
    options.intra_op_num_threads = torch.get_num_threads()
    session = InferenceSession(path, options, ['CPUExecutionProvider'])
    return lambda image: session.run(None, dict(image=image))


def openvino(path: str) -> Run:
    """In float32, as the others."""
    from openvino import Core
    return Core().compile_model(path, 'CPU', dict(
        INFERENCE_PRECISION_HINT='f32', INFERENCE_NUM_THREADS=torch.get_num_threads()))


RUNTIMES = {', onnxruntime': onnxruntime, ', OpenVINO': openvino}  # after a backbone's name
