# Mask R-CNN on handwritten digits, from the backbone that ../classification/rest_lite_digits.py
# trains: see scripts/demo.py.
_base_ = [
    '../_base_/models/mask_rcnn.py', '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/digits.py', '../_base_/runtime/mmdet_iters.py'
]

# Boxes and masks are regressed without regard to class, so that the ten digits share the little
# training there is. BatchNorm lets neck and mask head learn faster. One sample a bin and few
# proposals are enough for images this small.
model = dict(
    backbone=dict(
        arch='lite',
        drop_path_rate=0.,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/rest_lite_digits/iter_400.pth',
            prefix='backbone.')),
    neck=dict(out_channels=64, norm_cfg=dict(type='BN')),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(
            in_channels=64, fc_out_channels=256, num_classes=10, reg_class_agnostic=True),
        mask_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(
            num_convs=2,
            norm_cfg=dict(type='BN'),
            in_channels=64,
            conv_out_channels=64,
            num_classes=10,
            class_agnostic=True,
            loss_mask=dict(loss_weight=2.0))),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=16, pos_fraction=0.5))),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)))
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator
