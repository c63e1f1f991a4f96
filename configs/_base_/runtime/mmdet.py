# MMDetection's runtime for runs that may be killed: a checkpoint file is either complete or
# absent, and `--resume` continues with the random numbers of an uninterrupted run.
_base_ = 'mmdet::_base_/default_runtime.py'
custom_imports = dict(imports=['mmrest', 'mmrest.engine'], allow_failed_imports=False)
default_hooks = dict(
    checkpoint=dict(backend_args=dict(backend='whole')), reseed=dict(type='ReseedHook'))
