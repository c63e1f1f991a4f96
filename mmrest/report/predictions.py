"""What a model predicts on its config's test data, by MMEngine's Runner."""
import json
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple, Union

from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from ..apis import package_of
from ..engine import CheckFitHook
from ..errors import UserError
from ..own_data.form import BOX
from ..safe_reading import register_safe_loader
from .form import MASK, RESULT, check_rows

Found = Dict[str, List[dict]]  # COCO's results, by 'bbox' and 'segm'


class EachSample(BaseMetric):
    """Gives a function each sample of the test data with its prediction, and keeps nothing."""

    def __init__(self, take: Callable[[dict], None]):
        super().__init__()
        self.take = take

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            self.take(sample)
        self.results: list = [None] * (len(self.results) + len(data_samples))

    def compute_metrics(self, results: list) -> dict:
        return {}


def test_dataset(cfg: Config) -> Any:
    """The data set of a config's test, without its data: classes, paths and pipeline."""
    if not cfg.get('test_dataloader'):
        raise UserError(f'{cfg.filename} has no test_dataloader')
    return DATASETS.build(dict(cfg.test_dataloader.dataset, lazy_init=True))


def run_test(cfg: Config, metric: BaseMetric) -> None:
    """Test the checkpoint ``cfg.load_from`` with a metric in place of the config's.

    Nothing is left on the disk.
    """
    register_safe_loader(weights_only=True)
    if package_of(cfg) == 'mmpretrain':  # as its own scripts do
        cfg.test_dataloader.setdefault('collate_fn', dict(type='default_collate'))
    cfg.resume, cfg.launcher = False, 'none'
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        # MMEngine keeps a visualizer by its name, and its backends the folder: of each run.
        cfg.visualizer = dict(cfg.get('visualizer') or dict(type='Visualizer'), name=folder,
                              vis_backends=[])
        runner = Runner.from_cfg(cfg)
        runner.register_hook(CheckFitHook())
        runner.test_evaluator.metrics[:] = [metric]
        metric.dataset_meta = runner.test_dataloader.dataset.metainfo
        runner.test()


def find_objects(cfg: Config, dataset: Any) -> Found:
    """What a detector finds in its test data, in COCO's results format.

    Args:
        cfg (Config): Its config, with the checkpoint as ``load_from``.
        dataset (CocoDataset): From :func:`test_dataset`.
    """
    from mmdet.evaluation import CocoMetric
    with tempfile.TemporaryDirectory() as folder:
        run_test(cfg, CocoMetric(
            dataset.ann_file, format_only=True, outfile_prefix=f'{folder}/found',
            backend_args=dataset.backend_args))
        return read_found([f'{folder}/found.bbox.json'])


def read_found(paths: Sequence[Union[str, Path]]) -> Found:
    """Read files in COCO's results format: one of boxes, and perhaps one of masks.

    The file of boxes ``NAME.bbox.json`` brings the masks of ``NAME.segm.json`` beside it. A
    file of masks that has boxes too gives both, if it is alone.

    Raises:
        UserError: A file is no list of boxes or masks, or there are no boxes, or two lists of
            one kind.
    """
    known = [Path(path) for path in paths]
    beside = [path.with_name(path.name.replace('.bbox.json', '.segm.json')) for path in known]
    files: Dict[str, Dict[Path, list]] = dict(bbox={}, segm={})
    for path in dict.fromkeys([*known, *(path for path in beside if path.exists())]):
        kind, rows = _read_results(path)
        files[kind][path] = rows
    for kind, what in (('bbox', 'boxes'), ('segm', 'masks')):
        if len(files[kind]) > 1:
            raise UserError(f'two files have {what}, {" and ".join(map(str, files[kind]))}: '
                            'give one of them, with what is found in all images')
    found = {kind: rows for kind, lists in files.items() for rows in lists.values()}
    if 'bbox' not in found:
        if not all('bbox' in row for row in found['segm']):
            raise UserError(f'{known[0]} has masks without boxes: give the file of the boxes')
        found['bbox'] = found['segm']
    return found


def _read_results(path: Path) -> Tuple[str, List[dict]]:
    """What a file has, 'bbox' or 'segm', and its rows."""
    try:
        rows = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise UserError(f"{path} is not in COCO's results format, a list in JSON: "
                        f'{error}') from error
    check_rows(rows, RESULT, path)
    masks = any('segmentation' in row for row in rows) or not rows and '.segm.' in path.name
    if masks:  # infer.py writes them without boxes, mm with
        check_rows(rows, dict(segmentation=MASK, bbox=BOX), path, optional=['bbox'])
        return 'segm', rows
    check_rows(rows, dict(bbox=BOX), path)
    return 'bbox', rows
