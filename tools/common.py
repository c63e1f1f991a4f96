"""What train.py and test.py share: options, reading the config, and checks of its data."""
import argparse
import inspect
import os
import re
import time
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

import mmrest.engine  # noqa: F401  for configs written by mmrest 0.1.0
from mmrest.apis import package_of, read_config
from mmrest.errors import UserError
from mmrest.own_data import Split, check_names, read_coco
from mmrest.safe_reading import register_safe_loader


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that the scripts have in common."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='a config of MMDetection, MMPretrain or MMSegmentation')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints; by default the '
                        "config's work_dir, or else ./work_dirs/<name of the config>")
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        help='values to change in the config, e.g. train_cfg.max_epochs=6')
    parser.add_argument('--no-check', action='store_true', help='do not read the COCO files '
                        'and compare their classes before the run')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'),
                        default='none', help='what has started the processes')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help='set by torch.distributed.launch')
    return parser


def load_config(args: argparse.Namespace, *loaders: str) -> Config:
    """Read the config with the common options in it. Checkpoints are read safely afterwards.

    Args:
        args (Namespace): The script's arguments.
        loaders (str): Names of the dataloaders whose data must exist.

    Raises:
        FileNotFoundError: The config does not exist, or a file or folder of its data.
        UserError: An option changes nothing.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config, args.cfg_options)
    _check_options(cfg, args.cfg_options or {})
    resumes = getattr(args, 'resume', None) or cfg.get('resume')
    register_safe_loader(weights_only=not resumes)
    missing = [path for dataset in _datasets(cfg, loaders) for path in _local_paths(dataset)
               if not os.path.exists(path)]
    if missing:
        raise FileNotFoundError(
            f'{args.config} needs {", ".join(dict.fromkeys(missing))}, which cannot be found: '
            'put the data in place, or set data_root in the config')
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    if package_of(cfg) == 'mmpretrain':  # its own scripts set these too
        for name in loaders:
            if cfg.get(name):
                cfg[name].setdefault('pin_memory', True)
                cfg[name].setdefault('persistent_workers', cfg[name].get('num_workers', 0) > 0)
                cfg[name].setdefault('collate_fn', dict(type='default_collate'))
    return cfg


def _check_options(cfg, options):
    """Refuse what the runner does not read: a variable of a config that others were made of."""
    known = {'custom_imports', 'tta_model', 'tta_pipeline', 'runner_type',
             *inspect.signature(Runner).parameters,
             *re.findall(r"cfg\.get\(\s*'(\w+)'", inspect.getsource(Runner))}
    for option, value in options.items():
        name = option.partition('.')[0]
        if name not in known and 'runner_type' not in cfg:
            read = [path for part in sorted(known & set(cfg))
                    for path in _find(cfg[part], name, part)]
            ways = ' or '.join(f'{path}={value}' for path in read) or 'another option'
            raise UserError(f'--cfg-options {option}={value} changes nothing: {name!r} is a '
                            f'variable of {cfg.filename}. Edit it there, or take {ways}')


def _find(node, name, path):
    """The places of a key in a config, as --cfg-options names them."""
    if isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key == name:
                yield f'{path}.{key}'
            yield from _find(value, name, f'{path}.{key}')


def check_data(cfg: Config, *loaders: str) -> None:
    """Check the COCO files of a config, and that its classes are theirs in name and order.

    MMDetection gives another number to the classes after a misspelt one, in silence.

    Raises:
        SystemExit: They are wrong. Findings are printed before.
    """
    if int(os.environ.get('RANK', 0)) > 0:
        return
    start, findings, files = time.perf_counter(), [], {}
    for dataset in _datasets(cfg, loaders):
        kind = dataset.get('type')
        places = [dataset.get(key) or '' for key in ('data_root', 'ann_file')]
        if getattr(kind, '__name__', kind) != 'CocoDataset' or not all(
                isinstance(place, str) for place in places):
            continue
        path = Path(*places)
        if path.is_file():
            masks = any(step.get('with_mask') for step in dataset.get('pipeline', []))
            if (path, masks) not in files:
                files[path, masks] = read_coco(path, masks)
            findings += _wrong(files[path, masks], dataset.get('metainfo'))
    if not files:
        return
    print(f'Checked {", ".join(str(path) for path, _ in files)} in '
          f'{time.perf_counter() - start:.1f} s; --no-check leaves this out.')
    if findings:
        print(*dict.fromkeys(map(str, findings)), sep='\n')
        raise SystemExit(f'{len(findings)} errors in the data: correct them before the run, or '
                         'leave the check out by --no-check')


def _wrong(split, metainfo):
    """The errors of a file beside the classes that a config takes of it."""
    from mmdet.datasets import CocoDataset
    known = CocoDataset._load_metainfo(dict(metainfo or {}))  # reads a path, as in a run
    names = Split(split.path, split.images, split.classes)
    if split.usable:
        check_names(names, known['classes'])
    return [finding for finding in [*split.findings, *names.findings] if finding.level == 'E']


def _datasets(cfg, loaders):
    """The datasets of the dataloaders. Wrappers are replaced by what they wrap."""
    pending = [cfg[name].dataset for name in loaders if cfg.get(name)]
    while pending:
        dataset = pending.pop(0)
        inner = dataset.get('datasets', [dataset['dataset']] if 'dataset' in dataset else [])
        pending += inner
        if not inner:
            yield dataset


def _local_paths(dataset):
    """The files and folders of a dataset, unless it or a loading step names another storage."""
    for part in [dataset, *dataset.get('pipeline', [])]:
        storage = part.get('backend_args') or part.get('file_client_args') or {}
        if storage.get('backend', 'local') != 'local':
            return
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or ''
    prefixes = prefix.values() if isinstance(prefix, dict) else [prefix]
    for part in [dataset.get('ann_file'), *prefixes]:
        if isinstance(root, str) and isinstance(part, str):
            path = os.path.join(root, part)
            if path and '://' not in path:
                yield path
