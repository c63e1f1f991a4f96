"""Images per second of any mm config: the whole model, without loading of data and NMS.

    python tools/analysis_tools/measure_fps.py configs/mask_rcnn/rest_small_fpn_1x_coco.py \
        --shape 800 1344
    python tools/analysis_tools/measure_fps.py CONFIG --batch-size 64 --device cuda --amp
"""
import argparse

import torch
from mmengine.config import DictAction
from torch.utils.benchmark import Measurement, Timer

from mmrest.apis import build_model, dummy_inputs, exit_on_user_error, read_config


def measure(cfg, shape, batch: int, device: str, amp: bool, seconds: float) -> Measurement:
    """Time forward passes of ``batch`` black images for ``seconds``, after a warm-up."""
    model = build_model(cfg).to(device)
    inputs = dummy_inputs(cfg, model, shape, batch)

    @torch.no_grad()
    def forward():
        with torch.autocast(torch.device(device).type, enabled=amp):
            return model(**inputs, mode='tensor')

    threads = torch.get_num_threads()
    timer = Timer('forward()', globals=dict(forward=forward), num_threads=threads)
    timer.timeit(3)
    return timer.blocked_autorange(min_run_time=seconds)


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument(
        '--shape', type=int, nargs=2, default=(224, 224), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--seconds', type=float, default=10., help='how long to measure')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args()
    cfg = read_config(args.config, args.cfg_options)
    found = measure(cfg, tuple(args.shape), args.batch_size, args.device, args.amp,
                    args.seconds)
    name = torch.cuda.get_device_name() if args.device.startswith('cuda') else (
        f'{torch.get_num_threads()} CPU threads')
    print(f'{args.config} at {args.batch_size} x {args.shape[0]}x{args.shape[1]}, {name}'
          f'{", amp" if args.amp else ""}, torch {torch.__version__}: '
          f'{args.batch_size / found.median:.2f} images/s '
          f'(median of {len(found.times)}, spread {found.iqr / found.median:.0%})')


if __name__ == '__main__':
    main()
