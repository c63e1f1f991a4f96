"""Test a checkpoint of a config of MMDetection, MMPretrain or MMSegmentation.

python tools/test.py configs/mask_rcnn/rest_small_fpn_1x_coco.py checkpoint.pth
"""
import os

from common import check_data, load_config, make_parser
from mmengine.config import Config, ConfigDict
from mmengine.registry import METRICS, RUNNERS

from mmrest.apis import exit_on_user_error, package_of
from mmrest.engine import CheckFitHook, ShortLogRunner
from mmrest.errors import UserError

# Averages predictions, unless the config has a tta_model.
TTA_MODELS = dict(
    mmdet=dict(type='DetTTAModel', tta_cfg=dict(
        nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
    mmpretrain=dict(type='AverageClsScoreTTA'),
    mmseg=dict(type='SegTTAModel'))


def parse_args():
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help='a file or an address')
    parser.add_argument('--out', help='save the predictions: a pickle file, or for '
                        'MMSegmentation a folder of label maps (PNG)')
    parser.add_argument('--show', action='store_true', help='show each prediction in a window')
    parser.add_argument('--show-dir', help='folder for images with the predictions drawn; '
                        "MMDetection's is inside the work_dir")
    parser.add_argument('--tta', action='store_true', help='test-time augmentation: the '
                        "config's tta_pipeline and tta_model, or else horizontal flips")
    return parser.parse_args()


def add_visualization(cfg: Config, show: bool, show_dir: str) -> None:
    """Have the config's visualization hook draw every image."""
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise UserError('--show and --show-dir need default_hooks.visualization in the config')
    hook.update(show=show, wait_time=2, interval=1)
    package = package_of(cfg)
    hook['enable' if package == 'mmpretrain' else 'draw'] = True
    if show_dir and package == 'mmseg':
        cfg.visualizer.save_dir = show_dir
    elif show_dir:
        hook['out_dir' if package == 'mmpretrain' else 'test_out_dir'] = show_dir


def add_tta(cfg: Config) -> None:
    """Wrap the model and the test pipeline for test-time augmentation."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    pipeline = cfg.get('tta_pipeline')
    if pipeline is None:
        *steps, pack = dataset.pipeline
        pack = {k: v for k, v in pack.items() if k != 'meta_keys'}  # the default has the flip
        flips = [dict(type='RandomFlip', prob=prob) for prob in (0., 1.)]
        pipeline = [*steps, dict(type='TestTimeAug', transforms=[flips, [pack]])]
    dataset.pipeline = pipeline
    cfg.default_scope = package_of(cfg)  # pure-Python configs have none
    tta_model = cfg.get('tta_model') or TTA_MODELS[cfg.default_scope]
    cfg.model = ConfigDict(**tta_model, module=cfg.model)


@exit_on_user_error
def main() -> None:
    args = parse_args()
    cfg = load_config(args, 'test_dataloader')
    if '://' not in args.checkpoint and not os.path.exists(args.checkpoint):
        raise FileNotFoundError(f'checkpoint={args.checkpoint!r}: no such file')
    cfg.load_from, cfg.resume = args.checkpoint, False  # True in the work_dir of a resumed run
    package = package_of(cfg)  # before the model is wrapped
    if args.show or args.show_dir:
        add_visualization(cfg, args.show, args.show_dir)
    if args.tta:
        add_tta(cfg)
    if args.out and package == 'mmseg':
        cfg.test_evaluator.output_dir = args.out
    if not args.no_check:
        check_data(cfg, 'test_dataloader')
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else ShortLogRunner.from_cfg(cfg)
    runner.register_hook(CheckFitHook())
    if args.out and package != 'mmseg':
        dump = 'mmdet.DumpDetResults' if package == 'mmdet' else 'DumpResults'
        metric = METRICS.build(dict(type=dump, out_file_path=args.out))
        runner.test_evaluator.metrics.append(metric)
    runner.test()


if __name__ == '__main__':
    main()
