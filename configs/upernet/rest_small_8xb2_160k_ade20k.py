# Swin Transformer's recipe (ICCV 2021), the usual one to compare backbones in UPerNet.
_base_ = [
    '../_base_/models/upernet.py', '../_base_/datasets/ade20k_512x512.py',
    '../_base_/runtime/mmseg.py'
]

batch_size = 2  # on each GPU
max_iters = 160000
lr = 6e-5  # for a batch of 16 images

train_dataloader = dict(batch_size=batch_size)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0.))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, end=1500),
    dict(type='PolyLR', power=1.0, begin=1500, end=max_iters, eta_min=0., by_epoch=False)
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=16000)
auto_scale_lr = dict(enable=False, base_batch_size=16)
