"""Parameters and FLOPs (multiply-adds of one image) of any mm config, whatever its backbone.

Two figures are printed. The first counts convolutions and linear layers only, as ResT's paper
does. The second counts the attention too: queries by keys, the mixing of heads, and map by
values. Norms, activations and pooling are in neither.

    python tools/analysis_tools/count_flops.py configs/classification/rest_small_8xb256_in1k.py
    python tools/analysis_tools/count_flops.py CONFIG --shape 800 1333
"""
import argparse
from typing import Tuple

import torch
from mmengine.config import Config, DictAction
from torch.utils.flop_counter import FlopCounterMode

from mmrest.apis import build_model, dummy_inputs, exit_on_user_error, read_config

aten = torch.ops.aten
LAYERS = (aten.convolution, aten.mm, aten.addmm)


def count(cfg: Config, shape: Tuple[int, int]) -> Tuple[int, int, int]:
    """Parameters, multiply-adds of the layers, and with those of the attention."""
    model = build_model(cfg)
    inputs = dummy_inputs(cfg, model, shape)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(**inputs, mode='tensor')
    # EMSA calls transform_conv on h + 1 vectors. The mixing itself counts as attention.
    vectors = sum((module.num_heads + 1) * module.transform_conv.weight.numel()
                  for module in model.modules() if hasattr(module, 'transform_conv'))
    flops = counter.get_flop_counts()['Global']
    layers = sum(flops.get(op, 0) for op in LAYERS) // 2 - vectors
    total = counter.get_total_flops() // 2 - vectors
    return sum(p.numel() for p in model.parameters()), layers, total


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument(
        '--shape', type=int, nargs=2, default=(224, 224), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args()
    cfg = read_config(args.config, args.cfg_options)
    parameters, layers, full = count(cfg, tuple(args.shape))
    print(f'{args.config} at {args.shape[0]}x{args.shape[1]}: '
          f'{parameters / 1e6:.3f} M parameters, FLOPs {layers / 1e9:.2f} G in convolutions '
          f'and linear layers, {full / 1e9:.2f} G with attention')


if __name__ == '__main__':
    main()
