"""The demo's resuming, on a classifier that trains for eight iterations."""
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location('demo', ROOT / 'scripts/demo.py')
demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo)

RUN = '''
import importlib.util, os, pathlib, sys
spec = importlib.util.spec_from_file_location('demo', sys.argv[1])
demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo)
demo.DEMO.mkdir(parents=True, exist_ok=True)
print('last:', demo.train('train', pathlib.Path('tiny.py'), demo.Usage()))
'''


@pytest.fixture
def project(tmp_path):
    """A folder with tools, a config of a small backbone, and digits to train it on."""
    (tmp_path / 'tools').symlink_to(ROOT / 'tools')
    script = ROOT / 'tools/dataset_converters/digits_to_coco.py'
    subprocess.run([sys.executable, script, 'data/digits', '--num-train', '1', '--num-val', '1',
                    '--renders', '1'], cwd=tmp_path, check=True)
    (tmp_path / 'tiny.py').write_text(f'''
_base_ = '{ROOT}/configs/classification/rest_lite_digits.py'
max_iters = 8
arch = dict(_delete_=True, embed_dims=[8], depths=[1], num_heads=[1], sr_ratios=[8])
model = dict(backbone=dict(arch=arch, out_indices=(0, )), head=dict(in_channels=8))
train_cfg = dict(max_iters=max_iters, val_interval=8)
param_scheduler = dict(_delete_=True, type='ConstantLR', factor=1., by_epoch=False)
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2, max_keep_ckpts=3))
custom_hooks = [dict(type='SlowHook')]
custom_imports = dict(imports=['mmrest', 'slow'], allow_failed_imports=False)
''')
    (tmp_path / 'slow.py').write_text('''
import time
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class SlowHook(Hook):
    def after_train_iter(self, *args, **kwargs):
        time.sleep(0.3)
''')
    return tmp_path


def start(project):
    return subprocess.Popen([sys.executable, '-c', RUN, str(ROOT / 'scripts/demo.py')],
                            cwd=project, text=True, stdout=subprocess.PIPE,
                            env=dict(os.environ, PYTHONPATH=str(project)),
                            start_new_session=True)


def test_a_killed_demo_goes_on_from_the_last_whole_checkpoint(project):
    work = project / 'work_dirs/tiny'
    process = start(project)
    deadline = time.monotonic() + 120
    while not (work / 'iter_4.pth').exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    whole = demo.newest_checkpoint(work)
    assert whole is not None and not (work / 'iter_8.pth').exists()
    # As if the next one had been cut off in the middle of being written.
    (work / 'iter_7.pth').write_bytes(whole.read_bytes()[:-1000])
    assert demo.newest_checkpoint(work) == whole

    out, _ = (again := start(project)).communicate(timeout=120)
    assert again.returncode == 0, out
    step = whole.stem.split('_')[1]
    assert f'--resume work_dirs/tiny/iter_{step}.pth' in out
    assert 'last: work_dirs/tiny/iter_8.pth' in out
    iterations = [int(i) for i in re.findall(r'Iter\(train\) \[ *(\d+)/8\]', out)]
    assert iterations == list(range(int(step) + 1, 9))
    assert (work / 'iter_8.pth').exists()
    usage = json.loads((project / 'work_dirs/demo/usage.json').read_text())
    assert usage['tiny']['seconds'] > 0

    out, _ = start(project).communicate(timeout=60)
    assert 'done before' in out and 'Iter(train)' not in out


def test_usage_adds_up_over_interruptions(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, 'DEMO', tmp_path)
    demo.Usage().add('step', 2.5, 100)
    demo.Usage().add('step', 1.5, 70)
    assert demo.Usage().steps == {'step': dict(seconds=4.0, memory=100)}


def test_a_failing_step_ends_the_demo_with_its_output(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, 'DEMO', tmp_path)
    with pytest.raises(SystemExit) as raised:
        demo.run('a title', 'step', ['-c', 'print("why"); raise SystemExit(3)'], demo.Usage())
    assert 'why' in str(raised.value) and 'exit code 3' in str(raised.value)
    assert 'a title' in capsys.readouterr().out
    assert (tmp_path / 'step.log').read_text() == 'why\n'


def test_curves_take_the_later_record_of_a_resumed_run(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, 'WORK', tmp_path)
    for run, records in (('1', [(1, 5.), (2, 4.), (3, 9.)]), ('2', [(3, 3.), (4, 2.)])):
        folder = tmp_path / 'rest_lite_digits' / run / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text(
            '\n'.join(json.dumps(dict(step=s, loss=v)) for s, v in records))
    import matplotlib.axes
    lines = []
    axes = matplotlib.axes.Axes
    monkeypatch.setattr(axes, 'plot', lambda self, x, y, **kwargs: lines.append((x, y)))
    monkeypatch.setattr(axes, 'legend', lambda self: None)
    demo.draw_curves(tmp_path / 'curves.png')
    assert lines == [([1, 2, 3, 4], [5., 4., 3., 2.])]
    assert (tmp_path / 'curves.png').stat().st_size > 1000
