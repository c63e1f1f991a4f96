"""Train the model of a config of MMDetection, MMPretrain or MMSegmentation.

python tools/train.py configs/mask_rcnn/rest_small_fpn_1x_coco.py --work-dir out --amp
torchrun --nproc_per_node 8 tools/train.py CONFIG --launcher pytorch
"""
import os
import sys
from pathlib import Path
from typing import Optional

from common import check_data, load_config, make_parser
from mmengine.registry import RUNNERS

from mmrest.apis import exit_on_user_error, package_of
from mmrest.engine import CheckFitHook, CompileBackboneHook, ReportHook, ShortLogRunner, set_amp
from mmrest.errors import UserError

LOADERS = ('train_dataloader', 'val_dataloader')


def parse_args():
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument('--amp', action='store_true', help='train with mixed precision, on a '
                        'CPU in bfloat16')
    parser.add_argument('--auto-scale-lr', action='store_true', help='multiply the learning '
                        "rate by batch size / the config's auto_scale_lr.base_batch_size")
    parser.add_argument('--compile', action='store_true', help='torch.compile: a classifier as '
                        'a whole, of other models the backbone')
    parser.add_argument('--resume', nargs='?', const='auto', help='continue from this '
                        'checkpoint, or without a value from the last one in the work_dir')
    return parser.parse_args()


def find_checkpoint(work_dir: str) -> Optional[str]:
    """Return the checkpoint that a run in ``work_dir`` resumes from; None in a new folder.

    MMEngine names it in the file last_checkpoint, which it writes in place after saving. If a
    run ended in between, that file may be missing, empty or outdated. The newest checkpoint
    in the folder is the right one then.

    Raises:
        FileNotFoundError: last_checkpoint exists, but no checkpoint.
    """
    pointer = Path(work_dir, 'last_checkpoint')
    named = pointer.read_text().strip() if pointer.exists() else ''
    if '://' in named or os.path.exists(named):
        return named
    saved = [path for path in Path(work_dir).glob('*.pth') if not path.name.startswith('best_')]
    if saved:
        newest = str(max(saved, key=os.path.getmtime))
        print(f'{pointer} names no checkpoint: resuming from {newest}')
        return newest
    if pointer.exists():
        raise FileNotFoundError(f'{work_dir} has no checkpoint to resume from: remove '
                                f'{pointer} to start from the beginning')
    return None


@exit_on_user_error
def main() -> None:
    args = parse_args()
    cfg = load_config(args, *LOADERS)
    if args.amp:
        set_amp(cfg)
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise UserError('--auto-scale-lr needs auto_scale_lr.base_batch_size, which '
                            f'{args.config} does not set')
        cfg.auto_scale_lr.enable = True
    if args.compile and package_of(cfg) == 'mmpretrain':
        cfg.setdefault('compile', True)  # MMEngine's
    if args.resume:
        cfg.resume = True
        auto = args.resume == 'auto'
        cfg.load_from = find_checkpoint(cfg.work_dir) if auto else args.resume
    if not args.no_check:
        check_data(cfg, *LOADERS)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else ShortLogRunner.from_cfg(cfg)
    runner.register_hook(CheckFitHook())
    if args.compile and not cfg.get('compile'):
        runner.register_hook(CompileBackboneHook())
    # With --cfg-options, the model is that of the config in the work_dir.
    config = Path(cfg.work_dir, Path(args.config).name) if args.cfg_options else args.config
    test = Path(sys.argv[0]).with_name('test.py')
    runner.register_hook(ReportHook(['python', str(test), str(config)]))
    runner.train()


if __name__ == '__main__':
    main()
