"""What a trained model gets wrong, as one HTML page that can be sent to others.

    python tools/analysis_tools/report.py CONFIG CHECKPOINT --out report.html
    python tools/analysis_tools/report.py CONFIG --dt found.bbox.json --out report.html

The model is tested on the config's test data, unless --dt names what a detector has found
there. --json writes the same figures for a program: two models are compared by `diff`.
"""
import argparse
from pathlib import Path

from mmengine.config import DictAction

from mmrest.apis import exit_on_user_error
from mmrest.files import write_whole
from mmrest.report import make_report


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config of MMDetection, MMPretrain or MMSegmentation')
    parser.add_argument('checkpoint', nargs='?', help='a file or an address')
    parser.add_argument('--out', type=Path, required=True, help='the HTML page to write')
    parser.add_argument('--json', type=Path, help='the file of the figures to write')
    parser.add_argument('--dt', type=Path, nargs='+', default=[], metavar='FILE',
                        help="what a detector has found, in COCO's results format: boxes, and "
                        'masks; NAME.bbox.json brings NAME.segm.json beside it')
    parser.add_argument('--score-thr', type=float, help='leave less sure objects out of '
                        'confusions and pictures; default: the score with the best F1')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        help='values to change in the config')
    args = parser.parse_args()
    report = make_report(args.config, args.checkpoint, args.dt, args.score_thr,
                         args.cfg_options)
    write_whole(args.out, report.page.encode())
    if args.json:
        write_whole(args.json, report.json().encode())
    print(f'Written: {", ".join(str(path) for path in (args.out, args.json) if path)}')


if __name__ == '__main__':
    main()
