"""The parts of a page: tables, curves and pictures in one file, without scripts."""
from html import escape
from typing import Iterable, List, NamedTuple, Optional, Sequence, Tuple

STYLE = '''
:root { color-scheme: light dark; --line: #d0d0d0; --soft: #f3f3f3; --a: #0072b2; --b: #d55e00;
  --c: #00805e; --page: #fff; --text: #1a1a1a }
@media (prefers-color-scheme: dark) { :root { --line: #484848; --soft: #262626; --a: #6bb8ea;
  --b: #ff9b52; --c: #45cfa5; --page: #161616; --text: #e8e8e8 } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 84rem;
  background: var(--page); color: var(--text) }
h1, h2, h3 { line-height: 1.25; overflow-wrap: anywhere }
h2 { margin-top: 3rem; border-bottom: 1px solid var(--line) }
p { max-width: 46rem } a { color: var(--a) }
nav a { margin-right: 1rem } .note { border-left: 4px solid var(--b); padding-left: .7rem }
.box { overflow: auto; max-height: 85vh; border: 1px solid var(--line); width: fit-content;
  max-width: 100% }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap }
td:first-child, th:first-child { text-align: left; position: sticky; left: 0; z-index: 1;
  background: var(--page); max-width: 14rem; overflow: hidden; text-overflow: ellipsis }
thead th { position: sticky; top: 0; background: var(--soft); z-index: 2;
  vertical-align: bottom }
thead th:first-child { background: var(--soft); z-index: 3 }
.text { text-align: left }
.pair { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start }
.asked td { white-space: normal; overflow-wrap: anywhere; text-align: left }
.asked td:first-child { white-space: nowrap }
.files td:first-child { position: static; max-width: none }
.matrix th, .matrix td { padding: .15rem .4rem }
.matrix thead th + th span { writing-mode: vertical-rl; transform: rotate(180deg);
  max-height: 9rem; overflow: hidden; text-overflow: ellipsis }
.diagonal { outline: 2px solid var(--c); outline-offset: -2px }
figure { margin: 0 } figcaption { overflow-wrap: anywhere }
.pictures { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)) }
.pictures.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 14rem), 1fr)) }
.pictures.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 36rem), 1fr)) }
.pictures svg, .pictures img { width: 100%; height: auto; display: block }
.maps { display: grid; grid-template-columns: 1fr 1fr 1fr; gap: .25rem; font-size: .8rem }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem } .charts figure { flex: 1 1 22rem }
.chart { width: 100%; max-width: 36rem; height: auto; font-size: 13px }
.chart text, .curve text { fill: currentColor } .chart path, .curve path { fill: none }
.curve { width: 90px; height: 45px; display: block }
.chip { display: inline-block; width: .9em; height: .9em; border: 1px solid var(--text) }
.legend span { white-space: nowrap; margin-right: 1rem }
.legend svg { width: 3.75rem; height: 1.25rem; vertical-align: middle; background: #888 }
@media print { .box { overflow: visible; max-height: none } body { font-size: 11px }
  figure { break-inside: avoid } thead th, td:first-child { position: static } }
'''


MOST_FREQUENT = 12  # confusions in a list
LARGEST_MATRIX = 150  # classes


class Raw(str):
    """HTML that a table's cell takes as it is."""


def show(value: object) -> str:
    """A value as HTML: numbers that are not whole with three decimals, nothing as a dash."""
    if isinstance(value, Raw):
        return value
    if value is None or isinstance(value, float) and value != value:
        return '–'
    return f'{value:.3f}' if isinstance(value, float) else escape(str(value))


def table(head: Sequence[str], rows: Iterable[Sequence], kind: str = '') -> str:
    """A table in a box of its own that scrolls. ``kind`` is a class of the style."""
    rows = list(rows)
    texts = [_is_text(value) for value in rows[0]] if rows else [True] * len(head)
    top = ''.join(f'<th scope="col"{KIND[text]} title="{escape(h)}"><span>{escape(h)}</span>'
                  for h, text in zip(head, texts))
    lines = ''.join('<tr>' + ''.join(_cell(value) for value in row) for row in rows)
    return (f'<div class="box"><table class="{kind}"><thead><tr>{top}</thead><tbody>{lines}'
            '</tbody></table></div>')


KIND = {True: ' class="text"', False: ''}


def _is_text(value):
    return isinstance(value, str) and not isinstance(value, Raw)


def _cell(value):
    if isinstance(value, Raw) and value.startswith('<td'):
        return value
    text = _is_text(value)
    title = f' title="{escape(value)}"' if text and len(value) > 24 else ''
    return f'<td{KIND[text]}{title}>{show(value)}'


def matrix(names: Sequence[str], counts: Sequence[Sequence[float]],
           background: bool = False) -> str:
    """Confusions as a table. Rows are the truth, columns what was found.

    Cells are shaded by their share of the row. The last row and column of ``background`` are
    objects found where there is none, and objects that were missed.
    """
    across = [*names, 'missed'] if background else names
    down = [*names, 'nothing there'] if background else names
    rows = []
    for i, (name, row) in enumerate(zip(down, counts)):
        total = max(sum(row), 1)
        cells = [_shaded(n, n / total, i == j, f'{name}: {n} as {across[j]}')
                 for j, n in enumerate(row)]
        rows.append((name, *cells))
    if background:  # there is no such thing as nothing found where nothing is
        rows[-1] = (*rows[-1][:-1], Raw('<td>'))
    return table(('truth \\ found', *across), rows, 'matrix')


def _shaded(count, share, right, title):
    color = '0 128 94' if right else '213 94 0'
    kind = ' class="diagonal"' if right else ''
    style = f' style="background:rgb({color}/{min(share, 1) * 0.75:.2f})"' if count else ''
    return Raw(f'<td{kind}{style} title="{escape(title)}">{count}' if count else f'<td{kind}>')


def confusions(names: Sequence[str], counts: Sequence[Sequence[float]],
               background: bool = False, unit: str = 'how often') -> str:
    """The matrix of confusions, and the most frequent ones as a list."""
    last = len(names)
    wrong = sorted(((n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row)
                    if i != j and n), key=lambda one: (-one[0], *one[1:]))
    rows = [('nothing there' if i == last else names[i], 'missed' if j == last else names[j], n)
            for n, i, j in wrong[:MOST_FREQUENT]]
    listed = table(('truth', 'found', unit), rows)
    if last > LARGEST_MATRIX:
        return f'<p>{last} classes are too many for a matrix.</p>{listed}'
    shown = matrix(names, counts, background) + (listed if rows else '')
    return f'<div class="pair">{shown}</div>'


class Line(NamedTuple):
    """A line of a chart: its name, points from 0 to 1, colour and dashes."""

    name: str
    points: Sequence[Tuple[float, Optional[float]]]
    color: str = 'var(--a)'
    dashes: str = ''


def chart(lines: Sequence[Line], across: str,
          mark: Optional[Tuple[float, float]] = None) -> str:
    """Lines in a unit square with axes and a legend."""
    left, width, height = 44, 380, 240
    parts: List[str] = []
    for tick in (0, .25, .5, .75, 1):
        x, y = left + tick * width, 10 + (1 - tick) * height
        parts += [f'<path d="M{left} {y}h{width}M{x} 10v{height}" stroke="var(--line)"/>',
                  f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{tick}</text>',
                  f'<text x="{x}" y="{height + 27}" text-anchor="middle">{tick}</text>']
    for i, line in enumerate(lines):
        style = f'stroke="{line.color}" stroke-width="2.5" stroke-dasharray="{line.dashes}"'
        y = height + 68 + 20 * (i // 3)
        x = left + i % 3 * 126
        parts += [f'<path d="{path(line.points, left, 10, width, height)}" {style}/>',
                  f'<path d="M{x} {y - 4}h30" {style}/><text x="{x + 36}" y="{y}">'
                  f'{escape(line.name)}</text>']
    if mark:
        parts.append(_dot(mark, left, 10, width, height, 5))
    parts.append(f'<text x="{left + width / 2}" y="{height + 46}" text-anchor="middle">'
                 f'{escape(across)}</text>')
    bottom = height + 78 + 20 * ((len(lines) - 1) // 3)
    return (f'<svg class="chart" role="img" viewBox="0 0 {left + width + 20} {bottom}">'
            f'{"".join(parts)}</svg>')


def curve(points: Sequence[Tuple[float, Optional[float]]],
          mark: Optional[Tuple[float, float]]) -> Raw:
    """A small curve for a table's cell."""
    parts = ['<path d="M2 2v40h86" stroke="var(--line)"/>',
             f'<path d="{path(points, 2, 2, 86, 40)}" stroke="var(--a)" stroke-width="1.5"/>']
    if mark:
        parts.append(_dot(mark, 2, 2, 86, 40, 3))
    return Raw('<svg class="curve" viewBox="0 0 90 45" aria-hidden="true">'
               f'{"".join(parts)}</svg>')


def path(points, left, top, width, height) -> str:
    """An SVG path through the points that have a value."""
    known = [(left + x * width, top + (1 - y) * height) for x, y in points if y is not None]
    return 'M' + 'L'.join(f'{x:.1f} {y:.1f}' for x, y in known) if known else ''


def _dot(mark, left, top, width, height, radius):
    x, y = left + mark[0] * width, top + (1 - mark[1]) * height
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="var(--b)"/>'


def section(anchor: str, title: str, *parts: str) -> Tuple[str, str, str]:
    """An entry of the page's contents: its anchor, title and HTML."""
    return anchor, title, ''.join(parts)


def document(title: str, parts: Sequence) -> str:
    """The whole page: what was asked, then sections with links to them."""
    first, *sections = parts
    links = ''.join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name, _ in sections)
    body = ''.join(f'<section id="{anchor}"><h2>{escape(name)}</h2>{html}</section>\n'
                   for anchor, name, html in sections)
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>{escape(title)}</title>'
            f'<style>{STYLE}</style></head><body>\n<h1>{escape(title)}</h1>{first}\n'
            f'<nav>{links}</nav>\n{body}</body></html>\n')
