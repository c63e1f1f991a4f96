# What Semantic FPN and UPerNet share: ResT on crops of 512 x 512, the 150 classes of ADE20K.
norm_cfg = dict(type='SyncBN', requires_grad=True)

model = dict(
    _scope_='mmseg',  # for mmengine.hub.get_model, which does not use default_scope
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512)),
    backbone=dict(type='ResT', arch='small', drop_path_rate=0.1),
    decode_head=dict(
        in_index=[0, 1, 2, 3],
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
