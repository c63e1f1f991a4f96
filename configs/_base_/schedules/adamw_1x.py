# 12 epochs of AdamW (section 4.2 of the paper). As in the published detection code, norms
# have no weight decay; everything else has, biases too.
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

lr = 1e-4  # for a batch of 16 images

optim_wrapper = dict(
    optimizer=dict(
        _delete_=True, type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.))
