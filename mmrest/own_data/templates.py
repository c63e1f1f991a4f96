"""The parts of a written config that are about data and schedule. Their names are its knobs."""

COCO = '''
train_pipeline = [
    dict(type='SkipUnreadable', transform=dict(type='LoadImageFromFile')),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask),
    dict(type='RandomChoiceResize', scales=train_scales, keep_ratio=True),
    dict(type='RandomFlip', prob=flip),
    dict(type='PackDetInputs')
]
# Annotations are loaded after Resize, so that they stay in pixels of the file.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
]
dataset = dict(type='CocoDataset', data_root='', metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=2,
    persistent_workers=True,
    sampler=sampler,
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        dataset,
        ann_file=train_annotations,
        data_prefix=dict(img=train_images),
        filter_cfg=dict(filter_empty_gt=not keep_empty, min_size=32),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        dataset,
        ann_file=val_annotations,
        data_prefix=dict(img=val_images),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = dict(
    val_dataloader,
    dataset=dict(
        val_dataloader['dataset'],
        ann_file=test_annotations,
        data_prefix=dict(img=test_images)))
val_evaluator = dict(
    type='CocoMetric', ann_file=val_annotations, metric=metric, classwise=True)
test_evaluator = dict(val_evaluator, ann_file=test_annotations)
'''

CLASSES = '''
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=size),
    dict(type='RandomFlip', prob=flip),
    dict(type='PackInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=edge, edge='short'),
    dict(type='CenterCrop', crop_size=size),
    dict(type='PackInputs')
]
dataset = dict(
    type='CustomDataset', data_root='', with_label=True, metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=2,
    sampler=sampler,
    dataset=dict(dataset, data_prefix=train_images, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=batch_size,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(dataset, data_prefix=val_images, pipeline=test_pipeline))
test_dataloader = dict(
    val_dataloader, dataset=dict(val_dataloader['dataset'], data_prefix=test_images))
val_evaluator = [  # the second one's lists have a value for each class
    dict(type='Accuracy', topk=(1, )),
    dict(type='SingleLabelMetric', average=None)
]
test_evaluator = val_evaluator
'''

SEGMENTS = '''
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=flip),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')
]
# Annotations are loaded after Resize, so that they keep their own size.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
dataset = dict(
    type='BaseSegDataset',
    data_root='',
    metainfo=dict(classes=classes),
    seg_map_suffix='.png')
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=2,
    persistent_workers=True,
    sampler=sampler,
    dataset=dict(
        dataset,
        img_suffix=train_suffix,
        data_prefix=dict(img_path=train_images, seg_map_path=train_maps),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        dataset,
        img_suffix=val_suffix,
        data_prefix=dict(img_path=val_images, seg_map_path=val_maps),
        pipeline=test_pipeline))
test_dataloader = dict(
    val_dataloader,
    dataset=dict(
        val_dataloader['dataset'],
        img_suffix=test_suffix,
        data_prefix=dict(img_path=test_images, seg_map_path=test_maps)))
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
'''

EPOCHS = '''
sampler = dict(type='DefaultSampler', shuffle=True)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
'''

STEPS = '''
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=500),
    dict(
        type='MultiStepLR', by_epoch=True, end=max_epochs, milestones=milestones, gamma=0.1)
]
'''

ITERS = '''
sampler = dict(type='InfiniteSampler', shuffle=True)
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=max_iters, val_interval=val_interval)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=warmup),
    dict(type='CosineAnnealingLR', by_epoch=False, end=max_iters, eta_min=0.)
]
log_processor = dict(by_epoch=False)
'''
DATA = dict(boxes=COCO, masks=COCO, classes=CLASSES, segments=SEGMENTS)
