"""docs/benchmarks.md and its chart, from the rows: no figure of theirs is typed by hand."""
import re
from pathlib import Path

from benchmarks import rows as rows_module
from benchmarks.rows import WHERE, exponent

TASK = ('kind', 'part', 'device', 'batch', 'height', 'width', 'precision')
SIDES = (256, 512, 1024, 2048)
HERO, RIVALS = 'ResT-Small', ('PVT-T', 'PVTv2-B1', 'Swin-T')
COMMAND = dict(cpu='make bench', long='make bench-all', gpu='make bench-gpu')
DEVICE = dict(cpu='CPU', cuda='NVIDIA GPU')

INTRO = '''# Benchmarks

Time and memory of mmrest beside a plain port of the published model
([published.py](../benchmarks/published.py)) and beside backbones of MMDetection, built as its
own configs say. `make bench` measures again what a CPU does in a quarter of an hour,
`make bench-all` what takes longer too, `make bench-gpu` what needs an NVIDIA GPU. They write
this page and its chart from the rows in [benchmarks/results](../benchmarks/results).

Nothing is measured before mmrest and the published model agree in float64, features and
gradients. Every measurement is a process of its own; the competitors of a table take turns.
Numbers are medians, with the least and the largest in brackets; "runs (processes)" says of how
many. Ratios are to the first row of a table: above 1 is slower, or more. Models have random
weights and no stochastic depth; backbones return four stages and train all their parameters. A
training step is forward, backward and AdamW's step.

Memory is the growth of the peak over weights and input: of the resident set on a CPU, of what
PyTorch has allocated on a GPU. Multiply-adds are those of one image, by
`torch.utils.flop_counter`, the products of attention included; ResT's are its equations', not
what the backends compute twice to save memory.
'''
SECTIONS = dict(
    training=('Training step of the backbone', ''),
    inference=('Inference of the backbone', ''),
    growth=(
        'Growth with the image',
        f'Square images of {SIDES[0]} to {SIDES[-1]} pixels a side. The exponents are slopes '
        'of the lines through the logarithms, by pixels: 1 is linear.'),
    detector=(
        'Training step of whole detectors',
        "As their configs ship them (R-50's stem and first stage are frozen there), random "
        'images with ten boxes and masks each.'),
    operator=(
        "EMSA's attention alone",
        'Forward and backward, queries and keys of the stage of ResT-Small. The roofline is '
        'the least time that an H200 needs for the products, or to move inputs, outputs and '
        'gradients once.'),
    digits=(
        'The demo with another backbone',
        'Mask R-CNN on handwritten digits as [digits.md](digits.md) trains it. Both backbones '
        'take the same way: a classifier of digits first, the detector from it, the same data, '
        'iterations, learning rates and heads. One run each.'),
    loading=(
        'Waiting for data',
        'Share of an iteration that training on digits waits for the data loader, as MMEngine '
        'logs it.'),
    first_step=(
        'Time to the first step',
        'From the start of the process to the end of its first training step, imports (and on '
        'a GPU compiling) included.'),
)


def write(plan, results, path):
    """Write the page to ``path`` and the chart beside it, from the CSV files in ``results``."""
    rows = []
    for selection in plan:
        file = Path(results) / f'{selection}.csv'
        if file.exists():
            rows += rows_module.read(file)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart = path.with_suffix('.png')
    drawn = draw(rows, chart)
    partial = path.with_suffix('.partial')
    partial.write_text(text(plan, rows, chart.name if drawn else None))
    partial.replace(path)


def text(plan, rows, chart=None):
    """The page in Markdown.

    Args:
        plan (dict): For each selection its groups, see benchmarks/run.py.
        rows (list[dict]): As :func:`benchmarks.rows.read` returns them.
        chart (str, optional): File name of the chart.
    """
    parts = [INTRO, *machines(rows), '## Goals\n', *goals(rows)]
    if chart is not None:
        parts += [f'![Images per second and memory against parameters and pixels]({chart})\n']
    for kind, (title, note) in SECTIONS.items():
        parts += [f'## {title}\n', *([note + '\n'] if note else [])]
        tables = {}  # the groups of a table: those of growth differ in size alone
        for selection, groups in plan.items():
            for group in groups:
                case = group.case
                if case['kind'] == kind:
                    size = () if kind == 'growth' else (case['height'], case['width'])
                    key = (selection, case['part'], case['device'], case['batch'],
                           case['precision'], group.models, size)
                    tables.setdefault(key, []).append(group)
        missing = {}
        for (selection, *_), groups in tables.items():
            lines = table(selection, groups, rows)
            if lines:
                parts += [f'**{caption(groups[0])}** (`{COMMAND[selection]}`)\n', *lines]
            else:
                missing.setdefault(COMMAND[selection], {})[caption(groups[0])] = None
        parts += [f"Not measured (`{command}`): {'; '.join(captions)}.\n"
                  for command, captions in missing.items()]
    return '\n'.join(parts)


def machines(rows):
    """What was measured where."""
    lines = ['| measured by | machine | versions | commit | date |', '|---|---|---|---|---|']
    seen = {}
    for row in rows:
        seen.setdefault((row['selection'], *(row[key] for key in WHERE)), row)
    for row in seen.values():
        versions = ', '.join(f'{key} {row[key]}' for key in WHERE[3:])
        lines.append(f"| `{COMMAND[row['selection']]}` | {row['machine']} | {versions} "
                     f"| {row['commit']} | {row['date']} |")
    missing = [command for selection, command in COMMAND.items()
               if not any(row['selection'] == selection for row in rows)]
    said = ['Not measured yet: ' + ', '.join(f'`{command}`' for command in missing) + '.\n']
    return [*(lines if seen else []), '', *(said if missing else [])]


def find(rows, metric='seconds', **wanted):
    """The first row with these values, or None."""
    wanted = dict(wanted, metric=metric)
    return next((row for row in rows if all(row[key] == wanted[key] for key in wanted)), None)


def goals(rows):
    """Each goal, and by how much it is met or missed, on each kind of device."""
    lines = ['| goal | on | ours | theirs | ratio | |', '|---|---|---|---|---|---|']
    statements = [(f'{HERO} at 800x1344: {what} than {rival}', kind, metric, HERO, rival)
                  for what, kind, metric in (('a faster training step', 'training', 'seconds'),
                                             ('less memory to train', 'training', 'bytes'),
                                             ('faster inference', 'inference', 'seconds'))
                  for rival in RIVALS]
    statements.append(('Mask R-CNN ResT-Small: a training step with less memory than R-50\'s',
                       'detector', 'bytes', 'Mask R-CNN ResT-Small', 'Mask R-CNN R-50'))
    counts = []
    for device, name in DEVICE.items():
        met = measured = 0
        if not any(row['device'] == device for row in rows):
            lines.append(f'| all of these | {name} | | | | not measured |')
            counts.append(f'on the {name} nothing has been measured')
            continue
        for goal, kind, metric, model, rival in statements:
            task = dict(kind=kind, device=device, height=800, width=1344, metric=metric)
            ours, theirs = None, None
            for row in rows:  # the first that has the rival beside it, in the same run
                if find([row], model=model, **task) and ours is None:
                    same = {key: row[key] for key in ('selection', *TASK, *WHERE)}
                    theirs = find(rows, **dict(same, metric=metric, model=rival))
                    ours = row if theirs else None
            if ours is None:
                lines.append(f'| {goal} | {name} |  |  |  | not measured |')
                continue
            show = seconds if metric == 'seconds' else megabytes
            share = ours['median'] / theirs['median']
            verdict = f'met, by {1 - share:.0%}' if share < 1 else f'missed, by {share - 1:.0%}'
            if ours['max'] >= theirs['min'] and ours['min'] <= theirs['max']:
                verdict += '; the spreads overlap'
            met, measured = met + (share < 1), measured + 1
            lines.append(f"| {goal} | {name} | {show(ours['median'])} | "
                         f"{show(theirs['median'])} | {share:.2f} | {verdict} |")
        counts.append(f'{met} of {len(statements)} are met on the {name}')
        if measured < len(statements):
            counts[-1] += f', {len(statements) - measured} not measured'
    summary = '; '.join(counts)
    return [summary[0].upper() + summary[1:] + '.\n', *lines, '']


def caption(group):
    """What a table shows."""
    case = group.case
    size = f"{case['batch']} x {case['height']}x{case['width']}"
    said = [case['part'], '' if case['kind'] == 'growth' else size, case['precision'],
            DEVICE[case['device']], group.models[0]]
    return ', '.join([word for word in said if word]) + ' and others' * (len(group.models) > 1)


def table(selection, groups, rows):
    """A table of one group (of growth: one group a size), without lines if it has no rows."""
    case, models = groups[0].case, groups[0].models
    tasks = [dict({key: group.case[key] for key in TASK}, selection=selection)
             for group in groups]

    def get(model, metric, task=0):
        return find(rows, metric, **dict(tasks[task], model=model))

    def failure(model, task=0):
        return get(model, '', task)

    if not any(find([row], row['metric'], **task) for row in rows for task in tasks):
        return []
    header, line = COLUMNS[case['kind']]
    lines = [header, re.sub(r'[^|]+', '---', header)]
    width = header.count('|') - 2
    for model in models:
        failed = [failure(model, i) for i in range(len(tasks)) if failure(model, i)]
        if any(get(model, metric, i) for i in range(len(tasks))
               for metric in ('seconds', 'box_ap')):
            lines.append(f'| {model} ' + line(get, model, models[0]) + ' |')
        elif failed:
            lines.append(f"| {model} | failed: {clean(failed[0]['status'])} " +
                         '| ' * (width - 1) + '|')
            continue
        else:
            lines.append(f'| {model} | not measured ' + '| ' * (width - 1) + '|')
        for row in failed:
            lines.append(f"| {model}, {row['height']}x{row['width']} | failed: "
                         f"{clean(row['status'])} " + '| ' * (width - 1) + '|')
    return [*lines, '']


def clean(status):
    return status.replace('|', '/')


def seconds(value):
    return f'{value * 1e3:.3g} ms' if value < 0.1 else f'{digits(value)} s'


def megabytes(value):
    return f'{digits(value / 1e6)} MB'


def digits(value):
    """Three significant ones, never an exponent."""
    return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'


def number(row, show=digits, scale=1.):
    """Median and spread of a row, the spread where there is one."""
    if row is None:
        return ''
    median, least, largest = (show(row[key] * scale) for key in ('median', 'min', 'max'))
    return median if least == largest else f'{median} ({least} to {largest})'


def ratio(row, base):
    return '' if row is None or base is None else f"{row['median'] / base['median']:.2f}"


def runs(row):
    return f"{row['runs']} ({row['processes']})"


def backbone_line(get, model, first):
    time, size = get(model, 'seconds'), get(model, 'bytes')
    rate = dict(time, median=time['batch'] / time['median'], min=time['batch'] / time['max'],
                max=time['batch'] / time['min'])
    return ' | '.join([
        '', number(get(model, 'parameters'), scale=1e-6),
        number(get(model, 'multiply_adds'), scale=1e-9), number(rate),
        ratio(time, get(first, 'seconds')), number(size, scale=1e-6),
        ratio(size, get(first, 'bytes')), runs(time)]).strip()


def detector_line(get, model, first):
    time, size = get(model, 'seconds'), get(model, 'bytes')
    return ' | '.join([
        '', number(time), ratio(time, get(first, 'seconds')), number(size, scale=1e-9),
        ratio(size, get(first, 'bytes')), runs(time)]).strip()


def growth_line(get, model, first):
    found = []
    for i in range(len(SIDES)):
        time, size = get(model, 'seconds', i), get(model, 'bytes', i)
        found.append((time, size) if time and size else None)
    cells = [f"{seconds(pair[0]['median'])}, {megabytes(pair[1]['median'])}" if pair else ''
             for pair in found]
    return ' | '.join(['', *(slope(found, i) for i in (0, 1)), *cells]).strip()


def slope(found, which):
    """Exponent of time (0) or memory (1) in pixels, over the sizes that were measured."""
    points = [(pair[which]['height'] * pair[which]['width'], pair[which]['median'])
              for pair in found if pair]
    if len(points) < 2:
        return ''
    over = '' if all(found) else f' (to {max(p[0]["height"] for p in found if p)})'
    return f'{exponent(*zip(*points)):.2f}{over}'


def operator_line(get, model, first):
    time, size, least = (get(model, key) for key in ('seconds', 'bytes', 'roofline_seconds'))
    share = '' if least is None else f"{least['median'] / time['median']:.0%}"
    return ' | '.join([
        '', number(time, scale=1e3), ratio(time, get(first, 'seconds')),
        number(size, scale=1e-6), ratio(size, get(first, 'bytes')), share, runs(time)]).strip()


def digits_line(get, model, first):
    return ' | '.join([
        '', number(get(model, 'top1')),
        *(number(get(model, metric), '{:.3f}'.format) for metric in ('box_ap', 'mask_ap')),
        *(number(get(model, f'{part}_seconds'), scale=1 / 60)
          for part in ('classifier', 'detector')),
        number(get(model, 'seconds')), number(get(model, 'process_bytes'), scale=1e-9)]).strip()


def loading_line(get, model, first):
    return ' | '.join([
        '', number(get(model, 'data_share'), '{:.2%}'.format), number(get(model, 'seconds')),
        runs(get(model, 'seconds'))]).strip()


def first_step_line(get, model, first):
    time = get(model, 'seconds')
    return ' | '.join([
        '', number(time), ratio(time, get(first, 'seconds')), runs(time)]).strip()


BACKBONE = ('| model | parameters, M | multiply-adds, G | images/s | time, ratio '
            '| memory, MB | ratio | runs (processes) |', backbone_line)
COLUMNS = dict(
    training=BACKBONE,
    inference=BACKBONE,
    growth=('| model | exponent of time | of memory |'
            + ''.join(f' {side}x{side} |' for side in SIDES), growth_line),
    detector=('| model | s/iter | ratio | memory, GB | ratio | runs (processes) |',
              detector_line),
    operator=('| formulation | ms | ratio | memory, MB | ratio | of the roofline '
              '| runs (processes) |', operator_line),
    digits=('| model | classifier top-1, % | box AP | mask AP | classifier, minutes '
            '| detector, minutes | s/iter | memory of the process, GB |', digits_line),
    loading=('| model | waiting for data | s/iter | records (processes) |', loading_line),
    first_step=('| model | s | ratio | runs (processes) |', first_step_line),
)


FAMILIES = {'ResT': ('C0', 'o'), 'published': ('C7', 'X'), 'PVT': ('C1', 's'),
            'PVTv2': ('C2', 'D'), 'Swin': ('C3', '^'), 'R': ('C4', 'v')}


def family(model):
    return 'published' if 'published' in model else model.split('-')[0]


def draw(rows, path):
    """The chart, of each device that has rows of its own; returns whether there is one."""
    shown = [row for row in rows if row['status'] == 'ok'
             and row['kind'] in ('training', 'inference', 'growth')]
    devices = [device for device in DEVICE if any(row['device'] == device for row in shown)]
    if not devices:
        return False
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(2 * len(devices), 3, figsize=(13, 7.5 * len(devices)),
                                constrained_layout=True, squeeze=False)
    for i, device in enumerate(devices):
        of_device = [row for row in shown if row['device'] == device]
        for kind, column in (('inference', 0), ('training', 1)):
            rate, size = axes[2 * i, column], axes[2 * i + 1, column]
            against_parameters(rate, size, of_device, kind)
            rate.set(title=f'{kind}, 800x1344, {DEVICE[device]}', ylabel='images/s')
            size.set(ylabel='memory, GB', xlabel='parameters, M')
        for metric, axis, scale, label in (('seconds', axes[2 * i, 2], 1, 's an image'),
                                           ('bytes', axes[2 * i + 1, 2], 1e-9, 'memory, GB')):
            against_pixels(axis, of_device, metric, scale)
            axis.set(ylabel=label, xlabel='side of a square image, pixels',
                     title='inference' if metric == 'seconds' else '')
    for axis in axes.flat:
        axis.grid(alpha=0.3, which='both')
    # As a new file in place of the old one: never half a chart.
    partial = path.with_suffix('.partial')
    figure.savefig(partial, dpi=80, format='png', metadata=dict(Software=None))
    plt.close(figure)
    partial.replace(path)
    return True


def against_parameters(rate, size, rows, kind):
    for row in rows:
        task = {key: row[key] for key in ('selection', *TASK)}
        if (row['kind'], row['metric'], row['height'], row['width']) != (
                kind, 'seconds', 800, 1344):
            continue
        if find(rows, **dict({k: task[k] for k in TASK}, model=row['model'])) is not row:
            continue  # of models in several tables, the first
        parameters, peak = (find(rows, metric, **dict(task, model=row['model']))
                            for metric in ('parameters', 'bytes'))
        if parameters is None or peak is None:
            continue
        color, marker = FAMILIES[family(row['model'])]
        for axis, value in ((rate, row['batch'] / row['median']), (size, peak['median'] / 1e9)):
            x = parameters['median'] / 1e6
            axis.plot(x, value, marker=marker, color=color, markersize=8)
            axis.annotate(row['model'], (x, value), xytext=(5, 4), textcoords='offset points',
                          fontsize=8)
    for axis in (rate, size):
        axis.margins(0.2)
        axis.set_ylim(bottom=0)


def against_pixels(axis, rows, metric, scale):
    points = {}
    for row in rows:
        if (row['kind'], row['part'], row['metric']) == ('growth', 'inference', metric):
            points.setdefault(row['model'], {}).setdefault(row['height'], row['median'] * scale)
    for model, values in points.items():
        color, marker = FAMILIES[family(model)]
        axis.loglog(sorted(values), [values[side] for side in sorted(values)], color=color,
                    marker=marker, label=model)
    axis.set_xticks(SIDES, [str(side) for side in SIDES])
    axis.minorticks_off()
    if points:
        axis.legend(fontsize=8)
