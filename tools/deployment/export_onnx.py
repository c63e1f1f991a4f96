"""Export a trained model as one ONNX file that runs without PyTorch and mm.

    python tools/deployment/export_onnx.py configs/mask_rcnn/rest_small_fpn_1x_coco.py \
        CHECKPOINT detector.onnx --images photo.jpg
    python tools/deployment/export_onnx.py configs/classification/rest_small_8xb256_in1k.py \
        CHECKPOINT backbone.onnx --part backbone

The file takes `image`, RGB of 0 to 255 (B, 3, H, W), of any size. It is written only if ONNX
Runtime agrees with mm's own predict at three sizes. tools/deployment/run_onnx.py runs it.
"""
import argparse
from typing import List, Optional

from mmengine.config import DictAction

from mmrest.apis import build_model, exit_on_user_error, read_config
from mmrest.deploy import describe, export
from mmrest.deploy.verify import sentence


@exit_on_user_error
def main(args: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('out', help='the .onnx file to write')
    parser.add_argument('--part', choices=('model', 'backbone'), default='model')
    parser.add_argument('--images', nargs='+', default=(), help='pictures to check the file '
                        'on; in random ones, the default, a detector may find nothing')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args(args)
    cfg = read_config(args.config, args.cfg_options)
    model = build_model(cfg, args.checkpoint)
    errors = export(model, args.out, describe(cfg, args.checkpoint),
                    args.part == 'backbone', args.images)
    print(f'{args.out}: {sentence(errors)}')


if __name__ == '__main__':
    main()
