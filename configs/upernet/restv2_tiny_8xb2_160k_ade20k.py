# The published recipe for Tiny is Swin Transformer's.
_base_ = './rest_small_8xb2_160k_ade20k.py'

model = dict(
    backbone=dict(_delete_=True, type='ResTV2', arch='tiny', drop_path_rate=0.1),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
