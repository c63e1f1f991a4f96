# coco_instance_multiscale.py without masks.
_base_ = 'mmdet::_base_/datasets/coco_detection.py'

train_pipeline = [
    dict(
        type='SkipUnreadable', transform=dict(type='LoadImageFromFile', backend_args=None)),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='RandomChoiceResize',
        scales=[(1333, short) for short in range(480, 801, 32)],
        keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs')
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
