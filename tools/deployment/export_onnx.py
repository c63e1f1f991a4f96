"""Export a trained model as one ONNX file that runs without PyTorch and mm.

    python tools/deployment/export_onnx.py configs/mask_rcnn/rest_small_fpn_1x_coco.py \
        CHECKPOINT detector.onnx --images photo.jpg
    python tools/deployment/export_onnx.py configs/classification/rest_small_8xb256_in1k.py \
        CHECKPOINT backbone.onnx --part backbone
    python tools/deployment/export_onnx.py CONFIG CHECKPOINT small.onnx --half
    python tools/deployment/export_onnx.py CONFIG CHECKPOINT small.onnx --int8 photographs/

The file takes `image`, RGB of 0 to 255 (B, 3, H, W), of any size. It is written only if ONNX
Runtime agrees with mm's own predict at three sizes. tools/deployment/run_onnx.py runs it.

--half stores the weights in float16, for a file of half the size. --int8 computes in 8-bit
integers, whose ranges are those of the given images. Both are written only if no metric of the
config's validation data (AP, top-1, mIoU) falls by 0.005 or more.
"""
import argparse
from pathlib import Path
from typing import List, Optional

from mmengine.config import DictAction
from run_onnx import find_images

from mmrest.apis import build_model, exit_on_user_error, read_config
from mmrest.deploy import Smaller, describe, export
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
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--half', action='store_true', help='weights in float16')
    size.add_argument('--int8', nargs='+', type=Path, default=(), metavar='IMAGES',
                      help='8-bit integers; images like those that the model is for, or '
                      'folders of them, of which at most 32 are taken')
    parser.add_argument('--limit', type=int, metavar='N', help='pictures of the validation '
                        'data to compare on, spread evenly; by default all')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args(args)
    if args.limit is not None and not (args.half or args.int8):
        parser.error('--limit belongs to --half and --int8')
    cfg = read_config(args.config, args.cfg_options)
    model = build_model(cfg, args.checkpoint)
    smaller = None
    if args.half or args.int8:
        images = find_images(args.int8).values() if args.int8 else ()
        smaller = Smaller(cfg, list(images), args.limit)
    errors = export(model, args.out, describe(cfg, args.checkpoint),
                    args.part == 'backbone', args.images, smaller)
    print(f'{args.out}: {sentence(errors)}')
    if smaller:
        print(smaller.sentence)


if __name__ == '__main__':
    main()
