# Handwritten digits on 128-pixel images, for detectors that a CPU trains in minutes from the
# backbone of configs/classification/rest_lite_digits.py: see tools/demo.py.
_base_ = 'mmdet::_base_/default_runtime.py'
custom_imports = dict(imports=['mmrest'], allow_failed_imports=False)

data_root = 'data/digits/'
batch_size = 8
lr = 1e-3  # of neck and heads; the backbone's is a fifth

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResT',
        arch='lite',
        drop_path_rate=0.,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/rest_lite_digits/iter_1100.pth',
            prefix='backbone.')))
