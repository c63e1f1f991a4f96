"""Fills in the tables of docs/benchmarks.md and draws its chart, from the rows of results."""
import io
import math
from statistics import linear_regression

from benchmarks import rows as rows_module
from benchmarks.rows import WHERE
from mmrest.files import write_whole

TASK = ('kind', 'part', 'device', 'batch', 'height', 'width', 'precision')
SIDES = (256, 512, 1024, 2048)
COMMAND = dict(cpu='make bench', long='make bench-all', gpu='make bench-gpu')
DEVICE = dict(cpu='CPU', cuda='NVIDIA GPU')
# At 800x1344: the statement, kind and metric, and the models whose medians are compared.
GOALS = [
    *((f'ResT-Small: {statement} than {rival}', kind, metric, 'ResT-Small', rival)
      for statement, kind, metric in (('a faster training step', 'training', 'seconds'),
                                      ('less memory to train', 'training', 'bytes'),
                                      ('faster inference', 'inference', 'seconds'))
      for rival in ('PVT-T', 'PVTv2-B1', 'Swin-T')),
    *((f'ResT-Small: {kind} no slower with torch.compile than without', kind, 'seconds',
       'ResT-Small, compiled', 'ResT-Small') for kind in ('training', 'inference')),
    ("Mask R-CNN ResT-Small: a training step with less memory than R-50's", 'detector', 'bytes',
     'Mask R-CNN ResT-Small', 'Mask R-CNN R-50'),
]


def write(plan, results, path):
    """Rewrite the page at ``path`` and the chart beside it, from the CSV files in ``results``.

    Args:
        plan (dict): Groups of each selection, see benchmarks/run.py.
        results (Path): Folder of the files.
        path (Path): The page.
    """
    files = [results / f'{selection}.csv' for selection in plan]
    rows = [row for file in files if file.exists() for row in rows_module.read(file)]
    text = fill(path.read_text(), plan, rows)
    write_whole(path.with_suffix('.png'), draw(rows))
    write_whole(path, text.encode())


def fill(text, plan, rows):
    """The page with new tables between the markers ``<!-- table: NAME -->``, ``<!-- end -->``.

    Raises:
        ValueError: The page has no marker for a table.
    """
    found = by_case(rows)
    tables = dict(machines=machines(rows), goals=goals(plan, found),
                  **{kind: of_kind(kind, plan, found) for kind in COLUMNS})
    for name, lines in tables.items():
        begin, end = f'<!-- table: {name} -->', '<!-- end -->'
        before, marker, rest = text.partition(begin)
        if not marker:
            raise ValueError(f'the page has no {begin}')
        lines = [begin, *lines, '', end]
        text = before + '\n'.join(lines) + rest.partition(end)[2]
    return text


def by_case(rows):
    """{(selection, *TASK, model): {metric: row}}; of a case in two groups, the first."""
    found = {}
    for row in rows:
        key = (row['selection'], *(row[name] for name in TASK), row['model'])
        found.setdefault(key, {}).setdefault(row['metric'], row)
    return found


def case_of(found, selection, case, model):
    return found.get((selection, *(case[name] for name in TASK), model), {})


def line(*cells):
    return f"| {' | '.join(cells)} |"


def machines(rows):
    """What was measured where, with what and when."""
    lines = [line('measured by', 'machine', 'versions', 'commit', 'date'), '|---' * 5 + '|']
    for row in {(row['selection'], *(row[key] for key in WHERE)): row for row in rows}.values():
        versions = ', '.join(f'{key} {row[key]}' for key in WHERE[3:])
        lines.append(line(f"`{COMMAND[row['selection']]}`", row['machine'], versions,
                          row['commit'], row['date']))
    missing = [f'`{command}`' for selection, command in COMMAND.items()
               if selection not in {row['selection'] for row in rows}]
    return lines + (['', f"Not measured yet: {', '.join(missing)}."] if missing else [])


def goals(plan, found):
    """Each goal on each kind of device where it was measured."""
    lines = [line('goal', 'on', 'ours', 'theirs', 'ratio', ''), '|---' * 6 + '|']
    for device, name in DEVICE.items():
        for goal, *what in GOALS:
            cells = compare(plan, found, device, *what)
            lines += [line(goal, name, *cells)] if cells else []
    return lines


def compare(plan, found, device, kind, metric, ours, theirs):
    """Both medians, their ratio and the verdict, from the first group that has both models, or
    None."""
    for selection, groups in plan.items():
        for case in (group.case for group in groups):
            if (case['kind'], case['device'], case['height']) != (kind, device, 800):
                continue
            a, b = (case_of(found, selection, case, model).get(metric)
                    for model in (ours, theirs))
            if a is None or b is None:
                continue
            share = a['median'] / b['median']
            verdict = 'met' if share <= 1 else 'missed'
            verdict += f', by {abs(1 - share):.0%}'
            if a['max'] >= b['min'] and a['min'] <= b['max']:
                verdict += '; the spreads overlap'
            show = seconds if metric == 'seconds' else megabytes
            return show(a['median']), show(b['median']), f'{share:.2f}', verdict
    return None


def of_kind(kind, plan, found):
    """The tables of all groups of a kind, and the captions of those without a row."""
    tables = {}  # a table of growth has a group for each size
    for selection, groups in plan.items():
        for group in groups:
            if group.case['kind'] == kind:
                tables.setdefault((selection, caption(group)), []).append(group)
    lines, missing = [], {}
    for (selection, title), groups in tables.items():
        table = table_of(selection, groups, found)
        if table:
            lines += ['', f'**{title}** (`{COMMAND[selection]}`)', '', *table]
        else:
            missing.setdefault(COMMAND[selection], []).append(title)
    for command, titles in missing.items():
        lines += ['', f"Not measured (`{command}`): {'; '.join(titles)}."]
    return lines[1:]


def caption(group):
    case = group.case
    size = f"{case['batch']} x {case['height']}x{case['width']}"
    words = [case['part'], '' if case['kind'] == 'growth' else size, case['precision'],
             DEVICE[case['device']], group.models[0]]
    return ', '.join(filter(None, words)) + ' and others' * (len(group.models) > 1)


def table_of(selection, groups, found):
    """Lines of a table, none if there is no row. Its metrics are keyed by (metric, height)."""
    models, columns = groups[0].models, COLUMNS[groups[0].case['kind']]
    metrics = {
        model: {(metric, group.case['height']): row for group in groups for metric, row
                in case_of(found, selection, group.case, model).items()}
        for model in models
    }
    if not any(metrics.values()):
        return []
    lines = [line('model', *(title for title, _ in columns)), '|---' * (len(columns) + 1) + '|']
    blanks = [''] * (len(columns) - 1)
    missing = [model for model in models if not metrics[model]]
    for model in models:
        failed = [row for (metric, _), row in metrics[model].items() if not metric]
        if len(metrics[model]) > len(failed):
            lines.append(line(model, *(
                show(metrics[model], metrics[models[0]]) for _, show in columns)))
        for row in failed:
            status = row['status'].replace('|', '/')
            lines.append(line(
                model, f"failed at {row['height']}x{row['width']}: {status}", *blanks))
    if missing:
        lines += ['', f"Not measured: {'; '.join(missing)}."]
    return lines


# Numbers, and the columns of each kind: a title, and the cell from the metrics of a model and
# of the table's first model.


def digits(value):
    """Three significant digits, never an exponent."""
    return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'


def seconds(value):
    return f'{value * 1e3:.3g} ms' if value < 0.1 else f'{digits(value)} s'


def megabytes(value):
    return f'{digits(value / 1e6)} MB'


def get(metrics, name):
    """The row of a metric at the only size of a table, or None."""
    return next((row for (metric, _), row in metrics.items() if metric == name), None)


def number(name, convert=lambda value, row: value, show=digits):
    """Median and spread of a metric; no spread if there is none."""
    def cell(metrics, first):
        row = get(metrics, name)
        if row is None:
            return ''
        median, *ends = (convert(row[key], row) for key in ('median', 'min', 'max'))
        least, largest = map(show, sorted(ends))
        return show(median) if least == largest else f'{show(median)} ({least} to {largest})'

    return cell


def scaled(name, scale):
    return number(name, lambda value, row: value * scale)


def ratio(name):
    """Of medians, to the first model."""
    def cell(metrics, first):
        row, base = get(metrics, name), get(first, name)
        return f"{row['median'] / base['median']:.2f}" if row and base else ''

    return cell


def runs(metrics, first):
    row = get(metrics, 'seconds')
    return f"{row['runs']} ({row['processes']})"


def share_of_roofline(metrics, first):
    least, row = get(metrics, 'roofline_seconds'), get(metrics, 'seconds')
    return f"{least['median'] / row['median']:.0%}" if least else ''


def exponent(name):
    """Slope of the line through the logarithms of a metric and of the pixels."""
    def cell(metrics, first):
        points = [(math.log(side**2), math.log(row['median']))
                  for (metric, side), row in sorted(metrics.items()) if metric == name]
        if len(points) < 2:
            return ''
        largest = max(side for metric, side in metrics if metric == name)
        return f'{linear_regression(*zip(*points)).slope:.2f}' + (
            f' (to {largest})' if len(points) < len(SIDES) else '')

    return cell


def at(side):
    """Time and memory at a size of an image."""
    def cell(metrics, first):
        time, size = metrics.get(('seconds', side)), metrics.get(('bytes', side))
        return f"{seconds(time['median'])}, {megabytes(size['median'])}" if time else ''

    return cell


RUNS = ('runs (processes)', runs)
BACKBONE = [
    ('parameters, M', scaled('parameters', 1e-6)),
    ('multiply-adds, G', scaled('multiply_adds', 1e-9)),
    ('images/s', number('seconds', lambda value, row: row['batch'] / value)),
    ('time, ratio', ratio('seconds')),
    ('memory, MB', scaled('bytes', 1e-6)), ('ratio', ratio('bytes')), RUNS,
]
COLUMNS = dict(
    training=BACKBONE,
    inference=BACKBONE,
    growth=[('exponent of time', exponent('seconds')), ('of memory', exponent('bytes')),
            *((f'{side}x{side}', at(side)) for side in SIDES)],
    detector=[('s/iter', number('seconds')), ('ratio', ratio('seconds')),
              ('memory, GB', scaled('bytes', 1e-9)), ('ratio', ratio('bytes')), RUNS],
    operator=[('ms', scaled('seconds', 1e3)), ('ratio', ratio('seconds')),
              ('memory, MB', scaled('bytes', 1e-6)), ('ratio', ratio('bytes')),
              ('of the roofline', share_of_roofline), RUNS],
    runtime=[('s', number('seconds')), ('ratio', ratio('seconds')),
             ('memory, MB', scaled('bytes', 1e-6)), ('ratio', ratio('bytes')), RUNS],
    digits=[('classifier top-1, %', number('top1')),
            ('box AP', number('box_ap', show='{:.3f}'.format)),
            ('mask AP', number('mask_ap', show='{:.3f}'.format)),
            ('classifier, minutes', scaled('classifier_seconds', 1 / 60)),
            ('detector, minutes', scaled('detector_seconds', 1 / 60)),
            ('s/iter', number('seconds')),
            ('memory of the process, GB', scaled('process_bytes', 1e-9))],
    loading=[('waiting for data', number('data_share', show='{:.2%}'.format)),
             ('s/iter', number('seconds')), ('records (processes)', runs)],
    first_step=[('s', number('seconds')), ('ratio', ratio('seconds')), RUNS],
)


# The chart


STYLES = {'ResT': 'C0o', 'ResTv2': 'C5P', 'PVT': 'C1s', 'PVTv2': 'C2D', 'Swin': 'C3^',
          'R': 'C4v'}


def draw(rows):
    """The chart as a PNG file: time and memory by parameters and by the side of an image, on
    each kind of device where both were measured."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    found = by_case(rows)
    devices = [device for device in DEVICE
               if (device, 'growth') in {(row['device'], row['kind']) for row in rows}]
    figure, axes = plt.subplots(2 * len(devices), 3, figsize=(13, 7.5 * len(devices)),
                                constrained_layout=True, squeeze=False)
    panels = [(device, metric, kind) for device in devices for metric in ('seconds', 'bytes')
              for kind in ('inference', 'training', 'growth')]
    for axis, (device, metric, kind) in zip(axes.flat, panels):
        for model, points in curves(found, device, metric, kind).items():
            style = 'C7X' if 'published' in model else STYLES[model.split('-')[0]]
            axis.plot(*zip(*sorted(points)), style + '-', label=model, markersize=7)
            if kind != 'growth':
                axis.annotate(model, points[0], xytext=(5, 4), textcoords='offset points',
                              fontsize=8)
        axis.set(ylabel='s an image' if metric == 'seconds' else 'memory, GB',
                 xlabel='parameters, M', title=f'{kind} at 800x1344, {DEVICE[device]}')
        axis.grid(alpha=0.3)
        if kind == 'growth':
            axis.set(xscale='log', yscale='log', xlabel='side of a square image, pixels',
                     title=f'inference, {DEVICE[device]}')
            axis.set_xticks(SIDES, [str(side) for side in SIDES])
            axis.minorticks_off()
            axis.legend(fontsize=8)
        else:
            axis.margins(0.2)
            axis.set_ylim(bottom=0)
    file = io.BytesIO()
    figure.savefig(file, dpi=80, metadata=dict(Software=None))
    plt.close(figure)
    return file.getvalue()


def curves(found, device, metric, kind):
    """Points of each model in a panel: one if ``kind`` is not growth, from its first table."""
    points = {}
    for (_, *task, model), metrics in found.items():
        case = dict(zip(TASK, task))
        if (case['kind'], case['device']) != (kind, device) or metric not in metrics:
            continue
        value = metrics[metric]['median'] * (1e-9 if metric == 'bytes' else 1 / case['batch'])
        if kind == 'growth':
            if case['part'] == 'inference':
                points.setdefault(model, {}).setdefault(case['height'], value)
        elif case['height'] == 800 and model not in points:
            points[model] = {metrics['parameters']['median'] / 1e6: value}
    return {model: list(values.items()) for model, values in points.items()}
