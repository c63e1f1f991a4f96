"""Export ResT to ONNX with dynamic batch and image size, checked with ONNX Runtime.

    python tools/deployment/export_onnx.py configs/classification/rest_small_8xb256_in1k.py \
        CHECKPOINT classifier.onnx
    python tools/deployment/export_onnx.py configs/mask_rcnn/rest_small_fpn_1x_coco.py \
        CHECKPOINT backbone.onnx --part backbone

The graph takes the output of the config's data preprocessor: normalised float32 images
(B, 3, H, W). The file's metadata has mean, std and channel order.
"""
import argparse
import copy
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.config import Config, DictAction
from torch import Tensor, nn

from mmrest.apis import Logits, build_model, exit_on_user_error, find_rest, read_config

# Batch, height and width of the example that is exported, and of those that are checked.
EXPORTED = (2, 192, 256)
CHECKED = ((1, 224, 224), (3, 97, 131), (1, 320, 64))
TOLERANCE = 1e-4


class Backbone(nn.Module):
    """A model's ResT: normalised images in, features out."""

    def __init__(self, rest: nn.Module):
        super().__init__()
        self.rest = rest

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        return self.rest(image)


def export(network: nn.Module, names: Sequence[str], metadata: Dict[str, str],
           path: Path) -> Tuple[float, float]:
    """Write a network as ONNX with dynamic batch, height and width.

    Args:
        network (nn.Module): Takes images (B, 3, H, W). It is set to eval mode.
        names (Sequence[str]): Names of its outputs.
        metadata (dict): The file's metadata.
        path (Path): The file. It is written only if ONNX Runtime agrees with PyTorch.

    Returns:
        tuple[float, float]: The largest errors of ONNX Runtime and of PyTorch in float32,
        compared with PyTorch in float64 at the sizes of CHECKED. They are relative to the
        largest element of each output.

    Raises:
        ValueError: The error of ONNX Runtime is larger than TOLERANCE, and larger than twice
            PyTorch's own (an untrained ResT may lose three digits in float32: its instance
            norm amplifies differences in nearly uniform maps).
        ImportError: A package that writes or runs ONNX is not installed.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx writes with it
    except ImportError as error:
        raise ImportError(f'{error}: run `pip install onnx onnxruntime onnxscript`') from error
    network.eval()
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        network, (torch.rand(EXPORTED[0], 3, *EXPORTED[1:]), ), dynamo=True, verbose=False,
        input_names=['image'], output_names=list(names),
        dynamic_shapes=dict(image={0: dynamic, 2: dynamic, 3: dynamic}))
    partial = path.with_name(f'{path.name}.partial')
    path.parent.mkdir(parents=True, exist_ok=True)
    model = program.model_proto
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, str(partial))
    session = onnxruntime.InferenceSession(str(partial), providers=['CPUExecutionProvider'])
    exact = copy.deepcopy(network).double()
    worst = [0., 0.]
    for batch, *hw in CHECKED:
        image = torch.randn(batch, 3, *hw)
        with torch.no_grad():
            wanted, plain = exact(image.double()), network(image)
        if isinstance(wanted, Tensor):
            wanted, plain = [wanted], [plain]
        found = map(torch.from_numpy, session.run(None, dict(image=image.numpy())))
        for want, *gots in zip(wanted, found, plain):
            errors = [((got - want).abs().max() / want.abs().max()).item() for got in gots]
            worst = [max(pair) for pair in zip(worst, errors)]
    if not worst[0] <= max(TOLERANCE, 2 * worst[1]):
        partial.unlink()
        raise ValueError(f'not written: ONNX Runtime is {worst[0]:.1e} off. Allowed is '
                         f'{TOLERANCE}, or twice the {worst[1]:.1e} of PyTorch')
    partial.replace(path)
    return tuple(worst)


def describe_input(cfg: Config) -> Dict[str, str]:
    """Mean, std and channel order of the network's input."""
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    to_rgb = preprocessor.get('to_rgb', preprocessor.get('bgr_to_rgb', False))
    return dict(
        mean=str(list(preprocessor.get('mean') or ())),
        std=str(list(preprocessor.get('std') or ())),
        channel_order='RGB' if to_rgb else 'BGR')


@exit_on_user_error
def main(args: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('out', type=Path, help='the .onnx file to write')
    parser.add_argument(
        '--part', choices=('backbone', 'classifier'),
        help="default: the classifier if the config is MMPretrain's, otherwise the backbone")
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args(args)
    if not hasattr(torch.export, 'Dim') or not hasattr(torch.export.Dim, 'DYNAMIC'):
        raise SystemExit(f'torch {torch.__version__} cannot export dynamic sizes; '
                         'torch 2.6 or newer is needed')
    cfg = read_config(args.config, args.cfg_options)
    is_classifier = cfg.get('default_scope') == 'mmpretrain'
    part = args.part or ('classifier' if is_classifier else 'backbone')
    if part == 'classifier' and not is_classifier:
        raise ValueError(f"part='classifier' needs a config of MMPretrain, not {args.config!r}")
    model = build_model(cfg, args.checkpoint)
    rest = find_rest(model)
    if part == 'classifier':
        network, names = Logits(model), ['logits']
    else:
        network, names = Backbone(rest), [f'stage{i + 1}' for i in rest.out_indices]
    errors = export(network, names, describe_input(cfg), args.out)
    sizes = ', '.join('x'.join(map(str, size)) for size in CHECKED)
    print(f'{args.out}: {part}, {" ".join(names)}, {args.out.stat().st_size / 1e6:.1f} MB; '
          f'largest error against float64 at {sizes}: ONNX Runtime {errors[0]:.1e}, '
          f'PyTorch {errors[1]:.1e}')


if __name__ == '__main__':
    main()
