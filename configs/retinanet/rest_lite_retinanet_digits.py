# RetinaNet on handwritten digits, from the backbone that
# configs/classification/rest_lite_digits.py trains.
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', '../_base_/digits_detection.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResT',
        arch='lite',
        out_indices=(1, 2, 3),
        drop_path_rate=0.,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/rest_lite_digits/iter_1100.pth',
            prefix='backbone.')),
    neck=dict(
        in_channels=[128, 256, 512],
        out_channels=64,
        start_level=0,
        add_extra_convs='on_input',
        num_outs=4),
    bbox_head=dict(
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(strides=[8, 16, 32, 64])))
