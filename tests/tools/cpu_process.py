"""Runs a script as one of several processes on a CPU: MMEngine's launcher wants a GPU."""
import os
import runpy
import sys

import torch

torch.cuda.set_device = lambda device: None
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name='__main__')
