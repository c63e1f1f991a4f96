"""Small models of MMPretrain, MMDetection and MMSegmentation on a few digits."""
import subprocess
import sys

from .conftest import ROOT

ARCH = dict(_delete_=True, embed_dims=(8, 16, 16, 16), depths=(1, 1, 1, 1),
            num_heads=(1, 1, 1, 1), sr_ratios=(8, 4, 2, 1))
CONFIGS = dict(
    mmpretrain=('classification/rest_lite_digits.py', dict(head=dict(in_channels=16))),
    mmdet=('retinanet/rest_lite_retinanet_digits.py',
           dict(neck=dict(in_channels=[16, 16, 16]),
                test_cfg=dict(score_thr=0., max_per_img=20))),
    mmseg=('semantic_fpn/rest_lite_semantic_fpn_digits.py',
           dict(neck=dict(in_channels=[8, 16, 16, 16]))))
SETTINGS = '''
load_from = None
train_cfg = dict(max_iters=3, val_interval=3)
default_hooks = dict(logger=dict(interval=1))
one_process = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(one_process, batch_size=2)
val_dataloader = one_process
test_dataloader = one_process
'''


def write(folder):
    """Write data/digits, and a config for each package: our digits config, made small."""
    script = ROOT / 'tools/dataset_converters/digits_to_coco.py'
    subprocess.run([sys.executable, script, 'data/digits', '--num-train', '4', '--num-val', '2',
                    '--renders', '1'], cwd=folder, check=True)
    for package, (base, model) in CONFIGS.items():
        model = dict(model, backbone=dict(arch=ARCH, init_cfg=None, drop_path_rate=0.3))
        (folder / f'{package}.py').write_text(
            f'_base_ = {str(ROOT / "configs" / base)!r}\nmodel = {model}{SETTINGS}')
