_base_ = './rest_small_fpn_1x_coco.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.2), neck=dict(in_channels=[96, 192, 384, 768]))
work_dir = './work_dirs/faster_rcnn/{{ fileBasenameNoExtension }}'
