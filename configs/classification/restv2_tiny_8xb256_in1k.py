# 300 epochs on ImageNet-1k, as the authors' TRAINING.md has it. They train with mixed
# precision: add --amp.
_base_ = './rest_small_8xb256_in1k.py'

lr = 1.2e-3  # 1.5e-4 for each 256 of 8 x 256 images
warmup_epochs = 50

model = dict(
    backbone=dict(_delete_=True, type='ResTV2', arch='tiny', out_indices=(3, )),
    head=dict(
        in_channels=768,
        loss=dict(_delete_=True, type='LabelSmoothLoss', label_smooth_val=0.1,
                  mode='original')))

# As the accuracies of the released files were confirmed (PaddleViT): short side 224 / 0.9.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=248, edge='short', backend='pillow',
         interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs')
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=lr), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(
        type='LinearLR', start_factor=1e-3, by_epoch=True, end=warmup_epochs,
        convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=warmup_epochs)
]
custom_hooks = [dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL')]
