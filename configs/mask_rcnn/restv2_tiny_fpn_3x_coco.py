# The recipe of the published detection code: 270,000 iterations of 16 images, mixed precision.
# It starts from ImageNet weights. To do so, add to the command line
#     --cfg-options model.backbone.init_cfg.type=Pretrained
#                   model.backbone.init_cfg.checkpoint=restv2_tiny_224.pth
_base_ = './restv2_tiny_fpn_1x_coco.py'

max_iters = 270000

# As detectron2 crops: before the resize, boxes around what is left of the masks, and images
# may lose all their objects.
crop = dict(
    type='RandomCrop',
    crop_type='relative',
    crop_size=(0.9, 0.9),
    recompute_bbox=True,
    allow_negative_crop=True)
train_pipeline = [*_base_.train_pipeline[:2], crop, *_base_.train_pipeline[2:]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(type='AmpOptimWrapper', clip_grad=dict(max_norm=0.01))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(
        type='MultiStepLR',
        by_epoch=False,
        begin=0,
        end=max_iters,
        milestones=[210000, 250000],
        gamma=0.1)
]
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=30000)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=10000, max_keep_ckpts=2))
log_processor = dict(by_epoch=False)
