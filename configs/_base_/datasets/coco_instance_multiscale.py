# COCO as the paper trains on it (section 4.2): short side 480 to 800, long side at most 1333,
# 8 GPUs with 2 images each.
_base_ = 'mmdet::_base_/datasets/coco_instance.py'

train_pipeline = [
    dict(
        type='SkipUnreadable', transform=dict(type='LoadImageFromFile', backend_args=None)),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='RandomChoiceResize',
        scales=[(1333, short) for short in range(480, 801, 32)],
        keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs')
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
