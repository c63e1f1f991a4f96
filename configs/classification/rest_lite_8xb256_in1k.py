_base_ = './rest_small_8xb256_in1k.py'

model = dict(backbone=dict(arch='lite'))
