# RetinaNet on handwritten digits, from the backbone that ../classification/rest_lite_digits.py
# trains.
_base_ = [
    '../_base_/models/retinanet.py', '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/digits.py', '../_base_/runtime/mmdet_iters.py'
]

model = dict(
    backbone=dict(
        arch='lite',
        drop_path_rate=0.,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/rest_lite_digits/iter_400.pth',
            prefix='backbone.')),
    neck=dict(out_channels=64, num_outs=4),
    bbox_head=dict(
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(strides=[8, 16, 32, 64])))
