"""Check your data, say what is in it, and write a config that trains on it.

    python tools/own_data.py --task boxes --train pets/train --val pets/val --out pets.py
    python tools/own_data.py --task masks --train a/train.json --val a/val.json --out a.py \\
        --backbone rest_base --load-from rest_base.pth

Data: for boxes and masks, a COCO JSON with images/ beside it, or the folder of both; for
classes, a folder with one folder of images for each class; for segments, a folder with
images/, a folder of PNG maps and classes.txt, a class name a line. With errors (E) in the
data, no config is written. Warnings (W) are worth a look.
"""
import argparse
import shlex
import sys
import time
from pathlib import Path

from mmengine.config import Config

from mmrest.apis import exit_on_user_error
from mmrest.errors import UserError
from mmrest.files import write_whole
from mmrest.own_data import BASES, check_options, contents, make_config, read, training


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', choices=BASES, required=True)
    parser.add_argument('--train', type=Path, required=True, help='data to train on')
    parser.add_argument('--val', type=Path, required=True, help='data to evaluate on')
    parser.add_argument('--test', type=Path, help='data for tools/test.py; by default --val')
    parser.add_argument('--out', type=Path, help='the config; without it, the data is checked')
    parser.add_argument(
        '--model', choices=[name for names in BASES.values() for name in names],
        help='default: ' + ', '.join(f'{next(iter(n))} ({task})' for task, n in BASES.items()))
    parser.add_argument(
        '--backbone', default='rest_small', help='rest_lite, rest_small (default), rest_base, '
        'rest_large, restv2_tiny, restv2_small, restv2_base or restv2_large')
    parser.add_argument(
        '--load-from', help='checkpoint to start from: a backbone, a classifier or a detector')
    parser.add_argument('--batch-size', type=int, help='images on each GPU')
    parser.add_argument('--iters', type=int, help='iterations, instead of the rule')
    parser.add_argument('--lr', type=float, help="learning rate, instead of the recipe's")
    parser.add_argument(
        '--light', action='store_true', help='narrow heads and few proposals, for a CPU')
    parser.add_argument(
        '--keep-empty', action='store_true', help='train on images without objects, too')
    parser.add_argument(
        '--scale', type=int, nargs=2, metavar=('W', 'H'), help='long and short side of a '
        "detector's images at most, instead of the rule")
    parser.add_argument(
        '--patience', type=int, default=5, help='end the training after so many tests without '
        'a better one; 0: never (default: 5)')
    return parser.parse_args()


@exit_on_user_error
def main() -> None:
    args = parse_args()
    sys.stdout.reconfigure(errors='backslashreplace')  # names that the terminal cannot print
    options = {name: getattr(args, name) for name in (
        'model', 'backbone', 'batch_size', 'iters', 'lr', 'light', 'keep_empty', 'scale',
        'patience')}
    check_options(args.task, **options)
    if args.out and args.out.suffix != '.py':
        raise UserError(f'--out={args.out} must end in .py')
    start = time.perf_counter()
    splits = read(args.task, args.train, args.val, args.test, args.keep_empty)
    print(f'Read and loaded as mm does, in {time.perf_counter() - start:.0f} s.\n')
    print(contents(splits))
    findings = [finding for split in splits for finding in split.findings]
    print('', *findings, sep='\n')
    errors = sum(finding.level == 'E' for finding in findings)
    if errors:
        raise SystemExit(f'{errors} errors in the data: no config is written')
    text = make_config(args.task, *splits, load_from=args.load_from, **options)
    print('', training(splits[0], Config.fromstring(text, '.py')), sep='\n')
    if args.out:
        write_whole(args.out, text.encode())
        print(f'\nTrain it: python tools/train.py {shlex.quote(str(args.out))}')


if __name__ == '__main__':
    main()
