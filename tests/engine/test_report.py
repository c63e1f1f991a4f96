"""What a run says of its time, and at its end."""
from types import SimpleNamespace

from mmrest.engine import ReportHook, report


def said(steps, start=0, max_iters=900):
    """What the hook logs in so many steps of 2 s, after nine of 60 s."""
    lines = []
    runner = SimpleNamespace(iter=start, max_iters=max_iters,
                             logger=SimpleNamespace(info=lines.append))
    hook = ReportHook([])
    hook.before_train(runner)
    for step in range(steps):
        CLOCK[0] += 60 if step < 9 else 2
        hook.after_train_iter(runner, step)
        runner.iter += 1
    return lines


CLOCK = [0.]


def test_after_20_iterations_a_run_says_how_long_it_will_take(monkeypatch):
    monkeypatch.setattr(report.time, 'monotonic', lambda: CLOCK[0])
    assert said(19) == []
    for found, left, minutes in ((said(100), 880, '29.3'), (said(100, 600), 280, '9.3')):
        assert found == [f'The other {left} iterations will take about {minutes} min on this '
                         'machine, validations not counted.']
