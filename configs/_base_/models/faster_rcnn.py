# Faster R-CNN (Ren et al. 2015) with FPN on ResT.
_base_ = 'mmdet::_base_/models/faster-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(_delete_=True, type='ResT', arch='small', drop_path_rate=0.1),
    neck=dict(in_channels=[64, 128, 256, 512]))
