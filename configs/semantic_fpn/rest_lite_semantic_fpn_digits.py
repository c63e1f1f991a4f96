# Semantic FPN on handwritten digits, from the backbone and FPN that
# configs/mask_rcnn/rest_lite_fpn_digits.py trains: the class of each pixel is the digit whose
# ink it is, or background. No flips: a mirrored digit is another thing.
_base_ = ['../_base_/semantic_fpn.py', '../_base_/mmseg_runtime.py']

data_root = 'data/digits/'
batch_size = 8
max_iters = 900
lr = 1e-3  # of neck and head; the backbone's, trained before, is a fifth
load_from = 'work_dirs/rest_lite_fpn_digits/iter_1100.pth'

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(arch='lite', drop_path_rate=0.),
    neck=dict(out_channels=64),
    # Six pixels in seven are background: with equal weights ink is told from it, but for
    # hundreds of iterations no digit from another.
    decode_head=dict(
        in_channels=[64, 64, 64, 64],
        channels=64,
        num_classes=11,
        dropout_ratio=0.,
        loss_decode=dict(class_weight=[0.1] + [1.0] * 10)))

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
metainfo = dict(
    classes=('background', *'0123456789'),
    palette=[[0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200],
             [245, 130, 48], [145, 30, 180], [70, 240, 240], [240, 50, 230], [210, 245, 60],
             [250, 190, 212]])
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='train', seg_map_path='semantic/train'),
        metainfo=metainfo,
        pipeline=pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='val', seg_map_path='semantic/val'),
        metainfo=metainfo,
        pipeline=pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 3)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0., custom_keys=dict(backbone=dict(lr_mult=0.2))))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, eta_min=1e-6)
]
default_hooks = dict(checkpoint=dict(interval=100))
randomness = dict(seed=0)
auto_scale_lr = dict(enable=False, base_batch_size=8)
