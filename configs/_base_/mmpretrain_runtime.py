# MMPretrain's runtime, for runs that are killed: a checkpoint appears whole or not at all,
# and `--resume` goes on with the random numbers that the run would have drawn.
_base_ = 'mmpretrain::_base_/default_runtime.py'
custom_imports = dict(imports=['mmrest'], allow_failed_imports=False)
default_hooks = dict(
    checkpoint=dict(type='WholeCheckpointHook'), reseed=dict(type='ReseedHook'))
