# The published recipe for Small and Base, but for its learning rates that fall from stage to
# stage: see README.md.
_base_ = './restv2_tiny_8xb2_160k_ade20k.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.2))
optim_wrapper = dict(optimizer=dict(lr=1.5e-4, weight_decay=0.05))
