# The recipe is Swin Transformer's (ICCV 2021), which UPerNet is compared by.
_base_ = ['../_base_/upernet.py', '../_base_/ade20k_512x512.py', '../_base_/mmseg_runtime.py']
batch_size = 2  # of one GPU
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
