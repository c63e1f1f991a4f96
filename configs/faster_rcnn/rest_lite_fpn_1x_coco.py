_base_ = './rest_small_fpn_1x_coco.py'

model = dict(backbone=dict(arch='lite'))
work_dir = './work_dirs/faster_rcnn/{{ fileBasenameNoExtension }}'
