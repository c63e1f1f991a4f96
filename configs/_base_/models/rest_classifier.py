# ResT as a classifier (section 3.5 of the paper): average pooling, then one linear layer.
model = dict(
    _scope_='mmpretrain',  # for mmengine.hub.get_model, which does not use default_scope
    type='ImageClassifier',
    backbone=dict(type='ResT', arch='small', out_indices=(3, )),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=512,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
