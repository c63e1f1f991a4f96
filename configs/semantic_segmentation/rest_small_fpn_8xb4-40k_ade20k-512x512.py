# Semantic FPN by the recipe of a peer, PoolFormer's in MMSegmentation: 40k iterations of
# 32 images, AdamW 2e-4, weight decay 1e-4, poly schedule of power 0.9.
_base_ = [
    'mmseg::_base_/models/fpn_r50.py', 'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py', 'mmseg::_base_/schedules/schedule_40k.py'
]
custom_imports = dict(imports=['mmrest'], allow_failed_imports=False)

crop_size = (512, 512)
batch_size = 4  # on each of 8 GPUs
lr = 2e-4  # for 8 x 4 images

model = dict(
    data_preprocessor=dict(size=crop_size),
    pretrained=None,
    backbone=dict(_delete_=True, type='ResT', arch='small', drop_path_rate=0.1),
    neck=dict(in_channels=[64, 128, 256, 512]),
    decode_head=dict(num_classes=150))

train_dataloader = dict(batch_size=batch_size)

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, weight_decay=1e-4))
param_scheduler = [
    dict(type='PolyLR', power=0.9, begin=0, end=40000, eta_min=0., by_epoch=False)
]

auto_scale_lr = dict(enable=False, base_batch_size=32)
