# Handwritten digits, drawn by tools/dataset_converters/digits_to_coco.py: small enough to
# train on a CPU in minutes. No pipeline flips: a mirrored digit is another shape.
data_root = 'data/digits/'
batch_size = 8

train_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(data_root=data_root))
val_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
