"""Parameters and FLOPs (multiply-adds of one image) of any mm config with ResT in it.

Two countings: the published one has the convolutions and linear layers alone; the full one
has the attention's products, queries by keys and map by values, too.

    python tools/analysis_tools/count_flops.py configs/classification/rest_small_8xb256_in1k.py
    python tools/analysis_tools/count_flops.py CONFIG --shape 800 1333
"""
import argparse
from typing import Tuple

import torch
from mmengine.config import Config, DictAction
from torch import nn

from mmrest import EMSA
from mmrest.apis import build_model, example, find_rest, read_config


class Counter:
    """Adds up multiply-adds while a model runs.

    Attributes:
        layers (int): Of convolutions and linear layers.
        attention (int): Of the attention's two products, 2 N M C each call of EMSA.
    """

    def __init__(self, model: nn.Module):
        self.layers = self.attention = 0
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)):
                module.register_forward_hook(self._layer)
            if isinstance(module, EMSA):
                module.kv.register_forward_hook(self._keys)
                module.register_forward_hook(self._products)

    def _layer(self, module, inputs, output):
        if isinstance(module, nn.ConvTranspose2d):  # weight (in, out / groups, k, k)
            self.layers += inputs[0].numel() * module.weight[0].numel()
        else:  # weight (out, in / groups, k, k) or (out, in)
            self.layers += output.numel() * module.weight[0].numel()

    def _keys(self, module, inputs, output):
        self.num_keys = output.shape[1]

    def _products(self, module, inputs, output):
        self.attention += 2 * output.numel() * self.num_keys


def count(cfg: Config, shape: Tuple[int, int]) -> Tuple[int, int, int]:
    """Parameters, multiply-adds as published, and with the attention's products."""
    model = build_model(cfg)
    find_rest(model)
    counter = Counter(model)
    with torch.no_grad():
        model(**example(cfg, model, shape), mode='tensor')
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, counter.layers, counter.layers + counter.attention


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument(
        '--shape', type=int, nargs=2, default=(224, 224), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args()
    try:
        cfg = read_config(args.config, args.cfg_options)
        parameters, published, full = count(cfg, tuple(args.shape))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    print(f'{args.config} at {args.shape[0]}x{args.shape[1]}: '
          f'{parameters / 1e6:.3f} M parameters, FLOPs {published / 1e9:.2f} G as published, '
          f'{full / 1e9:.2f} G with the attention products')


if __name__ == '__main__':
    main()
