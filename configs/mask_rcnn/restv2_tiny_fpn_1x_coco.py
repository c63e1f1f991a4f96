# ResT's recipe, to compare the two backbones.
_base_ = './rest_small_fpn_1x_coco.py'

model = dict(
    backbone=dict(_delete_=True, type='ResTV2', arch='tiny', drop_path_rate=0.1),
    neck=dict(in_channels=[96, 192, 384, 768]))
