# 300 epochs on ImageNet-1k (section 4.1 of the paper).
_base_ = [
    '../_base_/models/rest_classifier.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py', '../_base_/runtime/mmpretrain.py'
]

batch_size = 256  # on each of 8 GPUs
lr = 5e-4  # for 8 x 256 images
max_epochs = 300
warmup_epochs = 5

model = dict(
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))

train_dataloader = dict(batch_size=batch_size)
val_dataloader = dict(batch_size=batch_size)
test_dataloader = val_dataloader

# As in the published code, norms and biases have no weight decay.
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(
        type='LinearLR', start_factor=1e-3, by_epoch=True, end=warmup_epochs,
        convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=warmup_epochs)
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(enable=False, base_batch_size=2048)
