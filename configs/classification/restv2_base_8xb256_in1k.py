_base_ = './restv2_tiny_8xb256_in1k.py'

model = dict(backbone=dict(arch='base'))
