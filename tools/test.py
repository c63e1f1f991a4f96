"""Test a checkpoint: mmdet's, mmpretrain's or mmseg's own test.py, whose options it takes.

python tools/test.py configs/mask_rcnn/rest_small_fpn_1x_coco.py checkpoint.pth
"""
from stock import run

if __name__ == '__main__':
    run('test.py', ('test_dataloader', ))
