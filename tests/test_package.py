"""What importing mmrest needs and says."""
import subprocess
import sys

import mmrest


def python(code):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)


def test_without_mmengine_it_says_what_to_install():
    done = python("import sys; sys.modules['mmengine'] = None; import mmrest")
    assert done.returncode
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError') and 'pip install onedl-mmengine' in last


def test_the_backbone_needs_torch_and_mmengine_only():
    blocked = ('mmcv', 'mmdet', 'mmpretrain', 'mmseg', 'torchvision', 'sklearn')
    code = f'import sys; sys.modules.update(dict.fromkeys({blocked})); import torch, mmrest;'
    done = python(code + "print(len(mmrest.ResT('lite')(torch.zeros(2, 3, 32, 32))))")
    assert done.stdout.strip() == '4', done.stderr


def test_public_names():
    assert set(mmrest.__all__) == {'EMSA', 'ResT', '__version__'}
    assert all(hasattr(mmrest, name) for name in mmrest.__all__)
