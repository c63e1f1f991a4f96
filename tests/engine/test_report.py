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


def test_a_best_checkpoint_that_is_gone_is_said(tmp_path):
    """The run was killed between its removal and the next checkpoint."""
    info, warnings = [], []
    known = dict(best_ckpt=str(tmp_path / 'best_epoch_2.pth'), last_ckpt='epoch_8.pth')
    ReportHook(['test.py', 'c.py']).after_train(SimpleNamespace(
        message_hub=SimpleNamespace(runtime_info=known),
        logger=SimpleNamespace(info=info.append, warning=warnings.append)))
    assert info == ['Last checkpoint: epoch_8.pth', 'Test it: test.py c.py epoch_8.pth']
    assert len(warnings) == 1 and 'best_epoch_2.pth, is gone' in warnings[0]
