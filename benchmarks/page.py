"""Fills in docs/benchmarks.md with its chart, and the README, from the files of results.

    python -m benchmarks.page
"""
import io
import json
from statistics import median

from benchmarks.models import ROOT
from benchmarks.plan import PLAN, columns
from mmrest.files import write_whole

RESULTS, PAGE = ROOT / 'benchmarks/results', ROOT / 'docs/benchmarks.md'
README = ROOT / 'README.md'
COMMAND = dict(cpu='make bench', gpu='make bench-gpu')
NOISE = 0.03  # of a ratio, on an idle machine
COUNTED = ('backbone', 'small_images')  # tables with parameters and multiply-adds


def write():
    """Rewrite the page, its chart and the README's table."""
    files = {name: json.loads((RESULTS / f'{name}.json').read_text()) for name in PLAN
             if (RESULTS / f'{name}.json').exists()}
    texts = fill(files)
    write_whole(PAGE.with_suffix('.png'), draw(by_column(files['cpu']['results'])))
    for path, text in texts.items():
        write_whole(path, text.encode())


def fill(files):
    """The text of the page and of the README with the tables of some files of results."""
    found = {name: by_column(file['results']) for name, file in files.items()}
    blocks = {name: table(name, plan[name], found[file]) for file, plan in PLAN.items()
              if file in found for name in plan}
    blocks.update(where=where(files), missing=[missing(found)])
    return {PAGE: replace(PAGE.read_text(), blocks),
            README: replace(README.read_text(), dict(speed=speed(files, found)))}


def replace(text, blocks):
    """A page with new lines between the markers ``<!-- table: NAME -->`` and ``<!-- end -->``.

    Raises:
        ValueError: The page has no such markers.
    """
    for name, lines in blocks.items():
        begin, end = f'<!-- table: {name} -->', '<!-- end -->'
        before, marker, rest = text.partition(begin)
        _, closing, after = rest.partition(end)
        if not (marker and closing):
            raise ValueError(f'the page has no {begin} with {end} after it')
        text = before + '\n'.join([begin, *lines, end]) + after
    return text


def dump(where, results):
    """The contents of a file of results, with a line for each."""
    lines = ',\n'.join(map(json.dumps, results))
    return f'{{"where": {json.dumps(where)},\n"results": [\n{lines}\n]}}\n'.encode()


def by_column(results):
    """{(mode, batch, height, width, precision): {model: result}}"""
    found = {}
    for result in results:
        key = tuple(result[name] for name in ('mode', 'batch', 'height', 'width', 'precision'))
        found.setdefault(key, {})[result['model']] = result
    return found


def of(column, found, models):
    """Results of a column by model, of these models, if there is one to compare with."""
    results = found.get((*column[:4], column.precision), {})
    return {model: results[model] for model in models
            if model in results and column.models[0] in results}


# Cells


def digits(value):
    """Three significant digits, never an exponent."""
    return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'


def seconds(result):
    value = median(result['seconds'])
    return f'{value * 1e3:.3g} ms' if value < 0.1 else f'{digits(value)} s'


def cost(result):
    """'1.5 s, 342 MB'; a compiled model on a CPU has no memory."""
    if 'bytes' not in result:
        return seconds(result)
    return f"{seconds(result)}, {digits(result['bytes'] / 1e6)} MB"


def ratios(result, first):
    """Of a model's times to the first one's, in each turn."""
    return [a / b for a, b in zip(result['seconds'], first['seconds'])]


def compared(result, first):
    """The cost, in bold if every turn is faster than the first model's."""
    faster = max(ratios(result, first)) < 1 - NOISE
    return f'**{cost(result)}**' if faster else cost(result)


def ratio(result, first):
    turns = ratios(result, first)
    middle, *ends = (f'{value:.2f}' for value in (median(turns), min(turns), max(turns)))
    return middle if len(set(ends)) == 1 else f"{middle} ({'–'.join(ends)})"


def growth(result, smallest):
    """Time per pixel, to that of a smaller image."""
    each, least = (median(x['seconds']) / x['height'] / x['width'] for x in (result, smallest))
    return f'{each / least:.2f}'


def title(column):
    return f'{column.mode}, {column.batch} x {column.height} x {column.width}'


def lines(head, rows):
    return [f"| {' | '.join(cells)} |" for cells in (head, ['---'] * len(head), *rows)]


# Tables


def table(name, planned, found):
    """Lines of a table. What has no result has no row or column."""
    results = {column: of(column, found, planned.models) for column in planned.columns}
    results = {column: models for column, models in results.items() if models}
    if not results:
        return []
    head, smallest = ['model'], next(iter(results.values()))
    second = growth if name == 'growth' else ratio
    rows = {model: [model] for model in planned.models
            if any(model in models for models in results.values())}
    if name in COUNTED:
        head += ['parameters, M', 'multiply-adds, G']
        for model, row in rows.items():
            result = next(models[model] for models in results.values() if model in models)
            row += [digits(result['parameters'] / 1e6), digits(result['multiply_adds'] / 1e9)]
    for column, models in results.items():
        head += [title(column), 'time per pixel' if name == 'growth' else 'ratio']
        first = models[column.models[0]]
        for model, row in rows.items():
            row += ['', '']
            if result := models.get(model):
                to = smallest.get(model) if name == 'growth' else first
                row[-2:] = compared(result, first), second(result, to) if to else ''
    return lines(head, rows.values())


def where(files):
    """What was measured where, with what and when."""
    rows = []
    for name, file in files.items():
        found = dict(file['where'])
        cells = [f'`{COMMAND[name]}`', *map(found.pop, ('machine', 'commit', 'date'))]
        rows.append([*cells, ', '.join(f'{key} {version}' for key, version in found.items())])
    return lines(['measured by', 'machine', 'commit', 'date', 'versions'], rows)


def missing(found):
    """A sentence on what the plan has and the results have not."""
    gaps = []
    for name in PLAN:
        for column in columns(name):
            have = of(column, found.get(name, {}), column.models)
            lacking = [model for model in column.models if model not in have]
            models = f": {', '.join(f'`{model}`' for model in lacking)}" if have else ''
            gaps += [f'`{COMMAND[name]}`, {column.precision}, {title(column)}{models}'] * (
                bool(lacking))
    return f"Not measured: {'; '.join(gaps)}." if gaps else 'All of the plan was measured.'


def speed(files, found):
    """The README's table: backbones on a CPU, and the published code on a GPU."""
    large, small = PLAN['cpu']['backbone'], PLAN['cpu']['small_images']
    shown = (*large.columns, small.columns[0])
    results = {column: of(column, found['cpu'], large.models) for column in shown}
    results = {column: models for column, models in results.items() if models}
    first = large.models[0]
    rows = [[model, *(compared(models[model], models[first]) if model in models else ''
                      for models in results.values())] for model in large.models
            if any(model in models for models in results.values())]
    at = files['cpu']['where']
    said = f"float32 on {at['machine']}, torch {at['torch']}. Bold is faster than {first}:"
    return [said, '', *lines(['', *map(title, results)], rows), '', *on_a_gpu(files, found)]


def on_a_gpu(files, found):
    pair = ('ResT-Small', 'ResT-Small, published')
    costs = [f'{title(column)}: {cost(models[pair[0]])}, published {cost(models[pair[1]])}'
             for column in PLAN['gpu']['gpu'].columns[:2]
             for models in [of(column, found.get('gpu', {}), pair)] if len(models) == 2]
    return [f"* {files['gpu']['where']['machine']}, bfloat16, {text}" for text in costs]


# The chart


def draw(found):
    """The chart as a PNG file: bars of time and memory of backbones, and lines of growth."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), constrained_layout=True)
    backbone = PLAN['cpu']['backbone']
    for (*axes_of_columns, last), unit, value in zip(axes, ('s', 'MB'), (
            lambda result: median(result['seconds']),
            lambda result: result.get('bytes', 0) / 1e6)):
        for axis, column in zip(axes_of_columns, backbone.columns):
            bars(axis, of(column, found, backbone.models), value)
            axis.set(xlabel=unit, title=title(column))
        for model, points in curves(found, value).items():
            last.plot(*zip(*points), 'o-', label=model)
        last.set(xscale='log', yscale='log', ylabel=unit, title='inference of one image',
                 xlabel='side of a square image, pixels')
        sides = [column.height for column in PLAN['cpu']['growth'].columns]
        last.set_xticks(sides, map(str, sides))
        last.tick_params(axis='x', which='minor', bottom=False, labelbottom=False)
        last.legend()
    file = io.BytesIO()
    figure.savefig(file, dpi=80, metadata=dict(Software=None))
    plt.close(figure)
    return file.getvalue()


def bars(axis, results, value):
    shown = {model: value(result) for model, result in results.items() if value(result)}
    ours = [model for model in shown if 'ResT' in model and 'published' not in model]
    colors = ['C0' if model in ours else '0.6' for model in shown]
    axis.bar_label(axis.barh(list(shown), list(shown.values()), color=colors), padding=3,
                   labels=list(map(digits, shown.values())))
    axis.invert_yaxis()
    axis.margins(x=0.2)


def curves(found, value):
    """{model: [(side, value)]} of the table of growth."""
    points = {}
    for column in PLAN['cpu']['growth'].columns:
        for model, result in of(column, found, column.models).items():
            points.setdefault(model, []).append((column.height, value(result)))
    return points


if __name__ == '__main__':
    write()
