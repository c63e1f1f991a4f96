# rest_lite_digits.py with ResNet-18, to compare with.
_base_ = 'rest_lite_digits.py'

model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=18, num_stages=4, out_indices=(3, )))
