# RetinaNet (Lin et al. 2017) with FPN on ResT. FPN uses every level that it gets
# (start_level=0): the output norm of an unused level would have no gradient, and
# DistributedDataParallel stops at parameters without one.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True, type='ResT', arch='small', out_indices=(1, 2, 3), drop_path_rate=0.1),
    neck=dict(in_channels=[128, 256, 512], start_level=0, add_extra_convs='on_input'))
