# The class of each pixel of 128 x 128: background, or the digit whose ink it is.
_base_ = './digits.py'

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
# For --tta: sizes alone, because a mirrored digit is another shape.
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(side, side)) for side in (96, 128, 160)],
            [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]
        ])
]
metainfo = dict(
    classes=('background', *'0123456789'),
    palette=[[0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200],
             [245, 130, 48], [145, 30, 180], [70, 240, 240], [240, 50, 230], [210, 245, 60],
             [250, 190, 212]])
dataset = dict(type='BaseSegDataset', metainfo=metainfo, pipeline=pipeline)
train_dataloader = dict(
    dataset=dict(dataset, data_prefix=dict(img_path='train', seg_map_path='semantic/train')))
val_dataloader = dict(
    batch_size=1,
    dataset=dict(dataset, data_prefix=dict(img_path='val', seg_map_path='semantic/val')))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
