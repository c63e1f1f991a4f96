# Single digits, 48 pixels a side.
_base_ = './digits.py'

data_root = 'data/digits/cls/'
batch_size = 32

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=48),
    dict(type='PackInputs')
]
dataset = dict(type='CustomDataset', data_root=data_root, with_label=True, pipeline=pipeline)
train_dataloader = dict(batch_size=batch_size, dataset=dict(dataset, data_prefix='train'))
val_dataloader = dict(batch_size=64, dataset=dict(dataset, data_prefix='val'))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator
