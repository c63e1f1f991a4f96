# Minutes of AdamW on digits, for a backbone that was trained before.
max_iters = 900
lr = 5e-4  # of the backbone; neck and heads learn twice as fast

# A custom key overrides norm_decay_mult, and the longest key decides: norms of neck
# and heads need keys of their own, and with a key 'backbone' all norms of ResT would decay.
head = dict(lr_mult=2.)
head_norm = dict(lr_mult=2., decay_mult=0.)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.,
        custom_keys={
            'neck': head, 'head': head, 'bn.weight': head_norm, 'bn.bias': head_norm
        }))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, eta_min=1e-6)
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
randomness = dict(seed=0)
auto_scale_lr = dict(enable=False, base_batch_size=8)
