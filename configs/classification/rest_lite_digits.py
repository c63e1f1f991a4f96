# Handwritten digits on a CPU in minutes: see scripts/demo.py.
_base_ = [
    '../_base_/models/rest_classifier.py', '../_base_/datasets/digits_classification.py',
    '../_base_/runtime/mmpretrain.py'
]

max_iters = 400
lr = 3e-4  # the peak, reached slowly: from the start, it keeps ResT at chance for long

model = dict(
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
        num_classes=10),
    backbone=dict(arch='lite', drop_path_rate=0., init_cfg=dict(type='FromScratch')),
    head=dict(num_classes=10, topk=(1, )))

train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=200)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=lr, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.))
param_scheduler = dict(
    type='OneCycleLR', eta_max=lr, pct_start=0.4, total_steps=max_iters, by_epoch=False)

default_hooks = dict(
    logger=dict(interval=25, log_metric_by_epoch=False),
    checkpoint=dict(interval=100, by_epoch=False, max_keep_ckpts=2))
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
auto_scale_lr = dict(enable=False, base_batch_size=32)
