"""The CSV files of results: a row for each case and metric."""
import csv
import io
import statistics

from mmrest.files import write_whole

# The case, what was measured (empty where it failed: status says why), where and with what.
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
        selection (str): 'cpu', 'long' or 'gpu'.
        case (dict): See :mod:`benchmarks.measure`.
        where (dict): A value for each of WHERE.
        found (dict[str, list[float]]): All values of each metric.
        processes (int): Number of processes that measured.
        failure (str, optional): Error of the last process. It gets a row with an empty metric.
    """
    base = dict({key: case[key] for key in CASE}, selection=selection, processes=processes,
                **where)
    rows = [
        dict(base, metric=metric, unit=UNITS[metric], median=statistics.median(values),
             min=min(values), max=max(values), runs=len(values), status='ok')
        for metric, values in found.items()
    ]
    if failure is not None:
        rows.append(dict(base, metric='', runs=0, status=' '.join(failure.split())[:300]))
    return rows


def write(path, rows):
    file = io.StringIO(newline='')
    writer = csv.DictWriter(file, FIELDS, restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, file.getvalue().encode())


def read(path):
    """The rows of a file, with numbers as numbers."""
    with path.open(newline='') as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for keys, number in (
                (('batch', 'height', 'width', 'seed', 'runs', 'processes'), int),
                (('median', 'min', 'max'), float)):
            row.update({key: number(row[key]) for key in keys if row[key]})
    return rows
