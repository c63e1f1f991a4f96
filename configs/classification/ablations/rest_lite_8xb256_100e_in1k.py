# The recipe of the paper's ablations (section 4.3) with ResT-Lite as it is: 100 epochs of SGD,
# random crops and flips alone.
_base_ = [
    '../../_base_/models/rest_classifier.py', 'mmpretrain::_base_/datasets/imagenet_bs32.py',
    '../../_base_/runtime/mmpretrain.py'
]

batch_size = 256  # on each of 8 GPUs
lr = 0.4  # 0.1 x 2048 / 512
max_epochs = 100
warmup_epochs = 5

model = dict(backbone=dict(arch='lite'))

train_dataloader = dict(batch_size=batch_size)
val_dataloader = dict(batch_size=batch_size)
test_dataloader = val_dataloader

optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=lr, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.))
param_scheduler = [
    dict(
        type='LinearLR', start_factor=1e-3, by_epoch=True, end=warmup_epochs,
        convert_to_iter_based=True),
    dict(type='MultiStepLR', by_epoch=True, milestones=[30, 60, 90], gamma=0.1)
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(enable=False, base_batch_size=2048)
