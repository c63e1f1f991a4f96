"""The format of every result: one row a metric, in CSV."""
import csv
import math
import statistics

# What a case is, what was found (blank where it failed: status says why), and where.
CASE = ('kind', 'part', 'model', 'device', 'batch', 'height', 'width', 'precision', 'seed')
FOUND = ('metric', 'unit', 'median', 'min', 'max', 'runs', 'processes', 'status')
WHERE = ('date', 'commit', 'machine', 'python', 'torch', 'mmengine', 'mmcv', 'mmdet', 'mmrest')
FIELDS = ('selection', *CASE, *FOUND, *WHERE)
UNITS = dict(
    seconds='s', bytes='B', process_bytes='B', parameters='1', multiply_adds='1',
    roofline_seconds='s', data_share='1', box_ap='1', mask_ap='1', top1='%',
    classifier_seconds='s', detector_seconds='s')


def make(selection, case, where, found, processes, failure=None):
    """Rows of one case.

    Args:
        selection (str): What it was measured for: 'cpu', 'long' or 'gpu'.
        case (dict): See :mod:`benchmarks.measure`.
        where (dict): A value for each of WHERE.
        found (dict[str, list[float]]): Every value of each metric.
        processes (int): How many processes gave them.
        failure (str, optional): Why there is no more; it gets a row of its own.
    """
    base = dict({key: case.get(key, '') for key in CASE}, selection=selection, **where)
    rows = [
        dict(base, metric=metric, unit=UNITS[metric], median=statistics.median(values),
             min=min(values), max=max(values), runs=len(values), processes=processes,
             status='ok') for metric, values in found.items()
    ]
    if failure is not None:
        rows.append(dict(base, metric='', unit='', median='', min='', max='', runs=0,
                         processes=processes, status=' '.join(failure.split())[:300]))
    return rows


def write(path, rows):
    """Write all rows, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix('.partial')
    with partial.open('w', newline='') as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def read(path):
    """Rows of a file, numbers as numbers.

    Raises:
        ValueError: The file has other columns than FIELDS.
    """
    with path.open(newline='') as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != FIELDS:
            raise ValueError(f'{path} has the columns {reader.fieldnames}, not {FIELDS}')
        rows = list(reader)
    for row in rows:
        for key in ('batch', 'height', 'width', 'seed', 'runs', 'processes'):
            row[key] = int(row[key]) if row[key] else ''
        for key in ('median', 'min', 'max'):
            row[key] = float(row[key]) if row[key] else ''
    return rows


def exponent(xs, ys):
    """Slope of the line through the logarithms, by least squares.

    Raises:
        ValueError: Fewer than two points, or one not above 0.
    """
    if len(xs) != len(ys) or len(set(xs)) < 2 or min([*xs, *ys]) <= 0:
        raise ValueError(f'no line through the logarithms of {list(xs)} and {list(ys)}')
    x, y = ([math.log(value) for value in values] for values in (xs, ys))
    x_mean, y_mean = statistics.mean(x), statistics.mean(y)
    return sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y)) / sum(
        (a - x_mean)**2 for a in x)
