_base_ = 'rest_lite_digits.py'

model = dict(
    backbone=dict(_delete_=True, type='ResTV2', arch='tiny', out_indices=(3, ),
                  drop_path_rate=0.),
    head=dict(in_channels=768))
