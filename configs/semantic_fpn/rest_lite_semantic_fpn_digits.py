# Semantic FPN on handwritten digits, from the backbone and FPN that
# ../mask_rcnn/rest_lite_fpn_digits.py trains.
_base_ = [
    '../_base_/models/semantic_fpn.py', '../_base_/datasets/digits_semantic.py',
    '../_base_/schedules/digits.py', '../_base_/runtime/mmseg.py'
]

max_iters = 900
load_from = 'work_dirs/rest_lite_fpn_digits/iter_900.pth'

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(arch='lite', drop_path_rate=0.),
    neck=dict(out_channels=64, norm_cfg=dict(type='BN')),
    # Six pixels in seven are background. With equal weights the head separates ink from it,
    # but for hundreds of iterations no digit from another.
    decode_head=dict(
        in_channels=[64, 64, 64, 64],
        channels=64,
        num_classes=11,
        dropout_ratio=0.,
        loss_decode=dict(class_weight=[0.1] + [1.0] * 10)))

train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 3)
_base_.param_scheduler[1].end = max_iters
default_hooks = dict(checkpoint=dict(interval=100))
