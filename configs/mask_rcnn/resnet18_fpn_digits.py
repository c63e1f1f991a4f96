# rest_lite_fpn_digits.py with ResNet-18, to compare with: from the backbone that
# ../classification/resnet18_digits.py trains, and nothing frozen, as in ResT.
_base_ = 'rest_lite_fpn_digits.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=-1,
        norm_eval=False,
        style='pytorch',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/resnet18_digits/iter_400.pth',
            prefix='backbone.')))
