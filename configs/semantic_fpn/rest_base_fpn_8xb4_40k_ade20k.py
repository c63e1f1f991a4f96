_base_ = 'rest_small_fpn_8xb4_40k_ade20k.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]))
