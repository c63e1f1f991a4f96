"""What a model gets wrong, as one HTML page and as JSON: see :func:`make_report`."""
import json
import math
from datetime import date
from html import escape
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Sequence, Union

import mmengine

from ..apis import package_of, read_config
from ..errors import MissingPackageError, UserError
from ..version import __version__
from .html import document, table

__all__ = ['Report', 'make_report']
REPORTS = dict(mmdet='.detection_page', mmpretrain='.classes', mmseg='.segments')


class Report(NamedTuple):
    """The figures of a report, and the page that shows them."""

    figures: dict
    page: str

    def json(self) -> str:
        """The figures with sorted keys, six decimals and null for what there is not."""
        figures = _plain(self.figures)
        return json.dumps(figures, indent=1, sort_keys=True, allow_nan=False) + '\n'


def make_report(config: str, checkpoint: Optional[str] = None,
                found: Sequence[Union[str, Path]] = (), score_thr: Optional[float] = None,
                options: Optional[dict] = None) -> Report:
    """Test a model on its config's test data, and tell what it gets wrong.

    Args:
        config (str): A config of MMDetection, MMPretrain or MMSegmentation.
        checkpoint (str, optional): A file or an address. Not needed with ``found``.
        found (Sequence[str | Path]): What a detector has found, in COCO's results format: then
            nothing is run.
        score_thr (float, optional): Objects with a lower score are left out of confusions and
            pictures. By default, the score with the best F1 of all classes together.
        options (dict, optional): Values to change in the config, as from ``--cfg-options``.

    Raises:
        UserError: The arguments do not fit the config or each other, or the test data has no
            labels.
        MissingPackageError: hotcoco, which counts, is not installed.
        FileNotFoundError: The data or the checkpoint is not there.
    """
    cfg = read_config(config, options)
    package = package_of(cfg)
    if package not in REPORTS:
        raise UserError(f'{config} is for {package}; a report is made of models of '
                        f'{", ".join(REPORTS)}')
    _check(package, checkpoint, found, score_thr)
    cfg.load_from = checkpoint
    more = (found, score_thr) if package == 'mmdet' else ()
    figures, sections = import_module(REPORTS[package], __name__).report(cfg, *more)
    title = f'What {Path(config).stem} gets wrong'
    asked = _asked(config, checkpoint, found, figures)
    return Report(figures, document(title, [asked, *sections]))


def _check(package, checkpoint, found, score_thr):
    if package != 'mmdet' and (found or score_thr is not None):
        raise UserError('--dt and --score-thr are for detectors, and the config is for '
                        f'{package}')
    if bool(found) == bool(checkpoint):
        raise UserError('either a checkpoint is tested, or --dt names what it has found: give '
                        'one of them')
    if checkpoint and '://' not in checkpoint and not Path(checkpoint).exists():
        raise FileNotFoundError(f'checkpoint={checkpoint!r}: no such file')
    if score_thr is not None and not 0 <= score_thr <= 1:
        raise UserError(f'--score-thr {score_thr} must be from 0 to 1')
    if package != 'mmpretrain' and find_spec('hotcoco') is None:
        raise MissingPackageError('the errors are counted by hotcoco, which is not installed: '
                                  'run `pip install hotcoco`')


def _asked(config, checkpoint, found, figures) -> str:
    """The table of what was asked for."""
    rows: List[tuple] = [('config', config), ('test data', figures['data'])]
    rows += [('checkpoint', checkpoint)] if checkpoint else []
    rows += [('found objects', ', '.join(map(str, found)))] if found else []
    rows += [('images', figures['images'])]
    rows += [('objects', figures['objects'])] if 'objects' in figures else []
    rows += [('made', f'{date.today()} by mmrest {__version__}, MMEngine '
              f'{mmengine.__version__}')]
    notes = ''.join(f'<p class="note">{escape(note)}</p>' for note in figures['notes'])
    return table((), rows, 'asked') + notes


def _plain(value: Any) -> Any:
    """Numbers, texts, lists and dictionaries that JSON and `diff` can take."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
