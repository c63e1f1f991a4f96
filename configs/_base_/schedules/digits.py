# Minutes of AdamW on digits, for a backbone that was trained before.
max_iters = 900
lr = 1e-3  # of neck and heads; the backbone's is half of it

# A custom key ends MMEngine's rules for a parameter, so that norm_decay_mult does not reach
# the backbone: its norms have weight decay here.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0., custom_keys=dict(backbone=dict(lr_mult=0.5))))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, eta_min=1e-6)
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
randomness = dict(seed=0)
auto_scale_lr = dict(enable=False, base_batch_size=8)
