"""torch.compile for a part of a model, which MMEngine's own ``compile`` cannot take."""
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from ..errors import UserError


class CompileBackboneHook(Hook):
    """Compiles the backbone before training, in place: its parameters keep their names."""

    def before_train(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not hasattr(model, 'backbone'):
            raise UserError(f'{type(model).__name__} has no backbone that --compile could take')
        model.backbone.compile()
