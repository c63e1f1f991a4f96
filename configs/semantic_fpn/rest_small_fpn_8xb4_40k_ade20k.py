# PoolFormer's recipe (CVPR 2022), the usual one to compare backbones in Semantic FPN, but that
# norms have no weight decay here.
_base_ = [
    '../_base_/models/semantic_fpn.py', '../_base_/datasets/ade20k_512x512.py',
    '../_base_/runtime/mmseg.py'
]

max_iters = 40000
lr = 2e-4  # for a batch of 32 images

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.))
param_scheduler = dict(type='PolyLR', power=0.9, end=max_iters, eta_min=0., by_epoch=False)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=4000)
auto_scale_lr = dict(enable=False, base_batch_size=32)
