# MMSegmentation's runtime for runs that may be killed (see mmdet.py), counted in iterations.
# A copy, because MMEngine looks for 'mmseg::' in a package 'mmsegmentation', and OneDL's fork
# has another name.
default_scope = 'mmseg'
custom_imports = dict(imports=['mmrest', 'mmrest.engine'], allow_failed_imports=False)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook',
        by_epoch=False,
        interval=4000,
        max_keep_ckpts=2,
        backend_args=dict(backend='whole')),
    reseed=dict(type='ReseedHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'))
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
tta_model = dict(type='SegTTAModel')
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
