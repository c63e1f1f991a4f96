_base_ = './rest_lite_8xb256_100e_in1k.py'

model = dict(backbone=dict(type='ResTAblation', stem='resnet'))
