# The paper starts from ImageNet weights. To do so, add to the command line
#     --cfg-options model.backbone.init_cfg.type=Pretrained
#                   model.backbone.init_cfg.checkpoint=rest_small.pth
_base_ = [
    '../_base_/models/mask_rcnn.py', '../_base_/datasets/coco_instance_multiscale.py',
    '../_base_/schedules/adamw_1x.py', '../_base_/runtime/mmdet.py'
]
