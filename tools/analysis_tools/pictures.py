"""Arguments and drawing of the scripts that make a picture."""
import argparse
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import matplotlib
import numpy as np

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

Panel = Tuple[str, np.ndarray]


def picture_parser(description: str) -> argparse.ArgumentParser:
    """The arguments of a script that draws what a model computes from an image."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('image')
    parser.add_argument('out', type=Path, help='the picture to write')
    return parser


def save_rows(path: Path, rows: Sequence[List[Panel]], point: Optional[Tuple] = None) -> None:
    """Write a figure of titled pictures.

    Args:
        path (Path): The file. Its suffix names the format.
        rows (Sequence): The rows. Each is a list of (title, picture), where the picture is
            RGB (H, W, 3) or numbers (H, W). Numbers get a colour scale.
        point (tuple, optional): (y, x), marked in the RGB pictures.
    """
    columns = max(len(row) for row in rows)
    height, width = rows[0][0][1].shape[:2]
    figure, axes = plt.subplots(
        len(rows), columns, squeeze=False, constrained_layout=True,
        figsize=(2.6 * columns, (2.4 * height / width + 0.45) * len(rows) + 0.1))
    for axis in axes.flat:
        axis.axis('off')
    for axis_row, row in zip(axes, rows):
        for axis, (title, picture) in zip(axis_row, row):
            axis.set_title(title, fontsize=9)
            shown = axis.imshow(picture)
            if picture.ndim == 2:
                figure.colorbar(shown, ax=axis, shrink=0.8).ax.tick_params(labelsize=7)
            elif point is not None:
                axis.plot(point[1], point[0], 'r+', markersize=12, markeredgewidth=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
