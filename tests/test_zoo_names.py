"""Configs by name, from outside the checkout, once mmrest is imported."""
import subprocess
import sys
import textwrap

import pytest


def python(code, cwd):
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], cwd=cwd, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_a_config_of_ours_is_a_base_and_hub_finds_it(tmp_path):
    (tmp_path / 'mine.py').write_text(
        "_base_ = 'mmrest::mask_rcnn/rest_small_fpn_1x_coco.py'\n"
        "model = dict(backbone=dict(arch='lite'))\n")
    assert python('''
        import mmrest
        from mmengine.config import Config
        from mmengine.hub import get_config
        mine = Config.fromfile('mine.py')
        ours = get_config('mmrest::mask_rcnn/rest_small_fpn_1x_coco.py')
        assert ours.model.backbone.arch == 'small'
        ablation = 'mmrest::classification/ablations/rest_lite_msa_8xb256_100e_in1k.py'
        assert get_config(ablation).model.backbone.attention == 'msa'
        assert mine.model.neck == ours.model.neck
        print(mine.model.backbone)
    ''', tmp_path) == "{'type': 'ResT', 'arch': 'lite', 'drop_path_rate': 0.1}"


@pytest.mark.parametrize('first, second', [('mmrest', 'mmpretrain'), ('mmpretrain', 'mmrest')])
def test_mmpretrain_lists_and_builds_our_classifiers(first, second, tmp_path):
    assert python(f'''
        import {first}, {second}, mmpretrain
        names = mmpretrain.list_models('*rest_*')
        ours = [n for n in names if n.startswith('rest_')]
        assert [n for n in ours if '100e' not in n] == [
            f'rest_{{a}}_8xb256_in1k' for a in ('base', 'large', 'lite', 'small')], names
        assert len(ours) == 4 + 8, ours  # the ablations
        model = mmpretrain.get_model('rest_lite_8xb256_in1k')
        print(type(model.backbone).__name__, sum(p.numel() for p in model.parameters()))
    ''', tmp_path) == 'ResT 10508300'


def test_importing_mmrest_leaves_mmpretrain_alone(tmp_path):
    assert python('''
        import sys, mmrest
        print([m for m in sys.modules if m.split('.')[0] in ('mmpretrain', 'mmdet', 'mmseg')])
    ''', tmp_path) == '[]'


@pytest.mark.parametrize('modules', ['mmrest, mmengine.runner', 'mmengine.runner, mmrest'])
def test_our_hooks_are_there_as_soon_as_mmengines_are(modules, tmp_path):
    assert python(f'''
        import {modules}
        from mmengine.registry import HOOKS, TRANSFORMS
        print(HOOKS.get('WholeCheckpointHook') and TRANSFORMS.get('SkipUnreadable').__name__)
    ''', tmp_path) == 'SkipUnreadable'
