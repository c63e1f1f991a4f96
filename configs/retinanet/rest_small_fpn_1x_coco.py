_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py', '../_base_/coco_detection_multiscale.py',
    '../_base_/adamw_1x.py', '../_base_/mmdet_runtime.py'
]

# The paper starts from ImageNet weights: see configs/mask_rcnn/rest_small_fpn_1x_coco.py.
# FPN takes every level that it gets (start_level=0): one left out would have parameters
# without gradient, at which DistributedDataParallel stops.
model = dict(
    backbone=dict(
        _delete_=True, type='ResT', arch='small', out_indices=(1, 2, 3), drop_path_rate=0.1),
    neck=dict(in_channels=[128, 256, 512], start_level=0, add_extra_convs='on_input'))

auto_scale_lr = dict(enable=False, base_batch_size=16)
