# The schedule is that of the paper's other detectors. To start from ImageNet weights, see
# ../mask_rcnn/rest_small_fpn_1x_coco.py.
_base_ = [
    '../_base_/models/faster_rcnn.py', '../_base_/datasets/coco_detection_multiscale.py',
    '../_base_/schedules/adamw_1x.py', '../_base_/runtime/mmdet.py'
]

# Mask R-CNN's configs have the same file names, from which the default is made. A config that
# inherits from this one has to set its own.
work_dir = './work_dirs/faster_rcnn/{{ fileBasenameNoExtension }}'
