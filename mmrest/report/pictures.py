"""Pictures as data inside a page."""
import base64
from html import escape
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np

from ..apis import as_picture

NUM_WORST = 12
LONGEST = 900  # pixels of a side
CROWDED = 8  # texts, above which they are small
# Lines that differ in dashes too, and a shadow under them that shows on any picture.
STATES = dict(right=('found', '#00c08b', ''), wrong=('wrong', '#ff8c3a', '8 4'),
              missed=('missed', '#5fc3ff', '3 3'))


class Box(NamedTuple):
    """A box to draw: a key of :data:`STATES`, x, y, width, height, and a text."""

    state: str
    box: Sequence[float]
    text: str


def load_picture(dataset: Any, path: str) -> Tuple[Optional[np.ndarray], str]:
    """An image as the first step of a data set's pipeline loads it.

    Returns:
        tuple: RGB (h, w, 3), and why it is None.
    """
    try:
        loaded = dataset.pipeline.transforms[0](dict(img_path=path))
        return as_picture(loaded['img']), ''
    except Exception as error:  # of any image library
        return None, f'{path} cannot be read: {error!r}'


def data_uri(picture: np.ndarray) -> str:
    """A picture (h, w, 3), RGB, as JPEG in a page, at most 900 pixels a side."""
    scale = LONGEST / max(picture.shape[:2])
    if scale < 1:
        size = [max(round(side * scale), 1) for side in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return _encode('.jpg', 'image/jpeg', picture)


def map_uri(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> str:
    """A map of classes (h, w) as PNG in a page. What has no colour is white."""
    colors = np.full((max(len(palette), 256) + 1, 3), 255, np.uint8)
    colors[:len(palette)] = palette
    height, width = labels.shape
    step = -(-max(height, width) // LONGEST)  # classes have no mean
    labels = labels[::step, ::step].astype(int)
    return _encode('.png', 'image/png', colors[np.minimum(labels, 256)])


def _encode(suffix, kind, picture):
    done, content = cv2.imencode(suffix, picture[..., ::-1])
    if not done:
        raise ValueError(f'OpenCV cannot write {picture.shape} as {suffix}')
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'


def drawing(picture: np.ndarray, boxes: Sequence[Box]) -> str:
    """A picture with boxes over it, as SVG: lines are sharp at any size."""
    height, width = picture.shape[:2]
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img"><image width="{width}" '
             f'height="{height}" href="{data_uri(picture)}"/>']
    crowded = sum(state != 'right' for state, _, _ in boxes) > CROWDED
    size = min(max(width, height) / (40 if crowded else 24), min(width, height) / 5)
    taken: List[Tuple[float, float]] = []
    for state, box, text in boxes:
        _, color, _ = STATES[state]
        parts.append(f'<g><title>{escape(text)}</title>{outline(state, box)}</g>')
        if state != 'right':
            short = text if len(text) <= 24 else f'{text[:23]}…'
            left = min(box[0], width - 0.7 * size * len(short))
            x, y = _free((max(left, 0), box[1]), size, height, taken)
            parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:.1f}" fill="{color}" '
                         f'font-weight="600" stroke="#000" stroke-width="{size / 6:.2f}" '
                         f'paint-order="stroke">{escape(short)}</text>')
    return ''.join(parts) + '</svg>'


def _free(corner, size, height, taken):
    """A place for a text: above a box's corner, or lower where another text is."""
    x, y = corner[0], max(corner[1] - size / 4, size)
    while any(abs(x - a) < 6 * size and abs(y - b) < size for a, b in taken) and y < height:
        y += size
    taken.append((x, y))
    return x, min(y, height - size / 4)


def outline(state: str, box: Sequence[float]) -> str:
    """The rectangle of a box, twice: its shadow and its line."""
    _, color, dashes = STATES[state]
    x, y, width, height = (f'{side:.1f}' for side in box)
    shape = (f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="none" '
             'vector-effect="non-scaling-stroke"')
    return (f'{shape} stroke="#000" stroke-width="4" stroke-opacity=".6"/>'
            f'{shape} stroke="{color}" stroke-width="2" stroke-dasharray="{dashes}"/>')


def legend() -> str:
    """What the lines of :func:`drawing` mean."""
    samples = [f'<span><svg viewBox="0 0 60 20">{outline(state, (3, 3, 54, 14))}</svg> {name}'
               '</span>' for state, (name, _, _) in STATES.items()]
    return f'<p class="legend">{" ".join(samples)}</p>'
