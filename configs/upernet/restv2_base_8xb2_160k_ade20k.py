_base_ = './restv2_small_8xb2_160k_ade20k.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.3))
