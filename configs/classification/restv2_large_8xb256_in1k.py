_base_ = './restv2_tiny_8xb256_in1k.py'

model = dict(backbone=dict(arch='large'), head=dict(in_channels=1024))
