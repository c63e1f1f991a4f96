# The recipe is PoolFormer's (CVPR 2022), which Semantic FPN is compared by.
_base_ = [
    '../_base_/semantic_fpn.py', '../_base_/ade20k_512x512.py', '../_base_/mmseg_runtime.py'
]
max_iters = 40000
lr = 2e-4  # for a batch of 32 images

optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=lr, weight_decay=1e-4))
param_scheduler = dict(type='PolyLR', power=0.9, end=max_iters, eta_min=0., by_epoch=False)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=4000)
auto_scale_lr = dict(enable=False, base_batch_size=32)
