# MMPretrain's runtime for runs that may be killed: see mmdet.py.
_base_ = 'mmpretrain::_base_/default_runtime.py'
custom_imports = dict(imports=['mmrest', 'mmrest.engine'], allow_failed_imports=False)
default_hooks = dict(
    checkpoint=dict(backend_args=dict(backend='whole')), reseed=dict(type='ReseedHook'))
