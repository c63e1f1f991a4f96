"""Train a config: mmdet's, mmpretrain's or mmseg's own train.py, whose options it takes.

python tools/train.py configs/mask_rcnn/rest_small_fpn_1x_coco.py --work-dir out --amp
"""
from stock import run

if __name__ == '__main__':
    run('train.py', ('train_dataloader', 'val_dataloader'))
