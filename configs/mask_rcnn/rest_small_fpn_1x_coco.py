_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py', '../_base_/coco_instance_multiscale.py',
    '../_base_/adamw_1x.py', '../_base_/mmdet_runtime.py'
]

# The paper starts from ImageNet weights. To do so, add to the backbone (or say on the
# command line, with --cfg-options model.backbone.init_cfg.type=Pretrained
# model.backbone.init_cfg.checkpoint=rest_small.pth):
#     init_cfg=dict(type='Pretrained', checkpoint='rest_small.pth')
model = dict(
    backbone=dict(_delete_=True, type='ResT', arch='small', drop_path_rate=0.1),
    neck=dict(in_channels=[64, 128, 256, 512]))

auto_scale_lr = dict(enable=False, base_batch_size=16)
