"""Runs the stock tools of mmdet, mmpretrain and mmseg, after a look at the data."""
import argparse
import runpy
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Iterator, Optional, Sequence

from annotations import fault
from mmengine.config import Config, DictAction

from mmrest.safe_loading import load_safely

# Options of the stock tools that take a value; the others are flags.
VALUED = ('--work-dir', '--launcher', '--local_rank', '--local-rank', '--out',
          '--out-item', '--show-dir', '--wait-time', '--interval')


def run(script: str, loaders: Sequence[str]) -> None:
    """Run the package's own ``script`` with this process's arguments.

    Args:
        script (str): 'train.py' or 'test.py' of the package that the config's
            ``default_scope`` names.
        loaders (Sequence[str]): The dataloaders whose files must be in place.

    Raises:
        SystemExit: The config or a file of its data is missing, or the run failed and an
            annotation file has a fault; the sentence says which.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('config', nargs='?')
    parser.add_argument('checkpoint', nargs='?')
    parser.add_argument('--resume', nargs='?')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    for option in VALUED:
        parser.add_argument(option)
    args, _ = parser.parse_known_args()

    scope = 'mmdet'
    if args.config is not None:
        if not Path(args.config).is_file():
            raise SystemExit(f'config={args.config!r}: no such file')
        cfg = Config.fromfile(args.config)
        cfg.merge_from_dict(args.cfg_options)
        scope = cfg.get('default_scope', scope)
        missing = [path for path in _data_paths(cfg, loaders) if not path.exists()]
        if missing:
            raise SystemExit(
                f'{args.config} needs {", ".join(map(str, missing))}, which '
                f'{"is" if len(missing) == 1 else "are"} not there: put the data in '
                'place, or name its folder where the config does (data_root).')
    if args.checkpoint is not None and not Path(args.checkpoint).is_file():
        raise SystemExit(f'checkpoint={args.checkpoint!r}: no such file')
    load_safely()
    package = Path(find_spec(scope).origin).parent
    try:
        runpy.run_path(str(package / '.mim' / 'tools' / script), run_name='__main__')
    except Exception:
        sentence = _annotation_fault(cfg, loaders)
        if sentence is None:
            raise
        traceback.print_exc()
        raise SystemExit(sentence) from None


def _data_paths(cfg: Config, loaders: Sequence[str]) -> Iterator[Path]:
    """The local files and folders that the datasets of ``loaders`` read, each once."""
    seen = set()
    for loader in loaders:
        for dataset in _datasets((cfg.get(loader) or {}).get('dataset')):
            root = dataset.get('data_root') or ''
            prefix = dataset.get('data_prefix') or ''
            parts = list(prefix.values()) if isinstance(prefix, dict) else [prefix]
            for part in [dataset.get('ann_file') or '', *parts]:
                path = str(Path(root) / part) if '://' not in root else root
                if (part or root) and '://' not in path and path not in seen:
                    seen.add(path)
                    yield Path(path)


def _annotation_fault(cfg: Config, loaders: Sequence[str]) -> Optional[str]:
    """What is wrong with the COCO files, looked for only once a run has failed."""
    for loader in loaders:
        for dataset in _datasets((cfg.get(loader) or {}).get('dataset')):
            path = Path(dataset.get('data_root') or '', dataset.get('ann_file') or '')
            if dataset.get('type') == 'CocoDataset' and path.is_file():
                from mmdet.datasets import CocoDataset
                classes = (dataset.get('metainfo') or CocoDataset.METAINFO)['classes']
                masks = any(step.get('with_mask') for step in dataset.get('pipeline', []))
                sentence = fault(path, classes, masks)
                if sentence is not None:
                    return sentence
    return None


def _datasets(dataset) -> Iterator[dict]:
    """A dataset, or those that it wraps."""
    if dataset is None:
        return
    inner = dataset.get('datasets', [dataset['dataset']] if 'dataset' in dataset else [])
    if not inner:
        yield dataset
    for wrapped in inner:
        yield from _datasets(wrapped)
