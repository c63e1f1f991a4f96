# UPerNet by the recipe of a peer, Swin's in MMSegmentation: 160k iterations of 16 images,
# AdamW 6e-5, weight decay 0.01 (none on norms), 1500 iterations of warm-up, linear decay.
_base_ = [
    'mmseg::_base_/models/upernet_r50.py', 'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py', 'mmseg::_base_/schedules/schedule_160k.py'
]
custom_imports = dict(imports=['mmrest'], allow_failed_imports=False)

crop_size = (512, 512)
batch_size = 2  # on each of 8 GPUs
lr = 6e-5  # for 8 x 2 images

model = dict(
    data_preprocessor=dict(size=crop_size),
    pretrained=None,
    backbone=dict(_delete_=True, type='ResT', arch='small', drop_path_rate=0.1),
    decode_head=dict(in_channels=[64, 128, 256, 512], num_classes=150),
    auxiliary_head=dict(in_channels=256, num_classes=150))

train_dataloader = dict(batch_size=batch_size)

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0.))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0., power=1., begin=1500, end=160000, by_epoch=False)
]

auto_scale_lr = dict(enable=False, base_batch_size=16)
