"""What ``tools/train.py`` says of a run: how long it takes, and what came of it."""
import shlex
import time
from typing import List, Optional

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from ..safe_reading import read_checkpoint

LONG = ('Config:', 'System environment:', 'Hooks will be executed', 'paramwise_options')


class ShortLogRunner(Runner):
    """A Runner whose first lines are numbers.

    Config, environment, hooks and each parameter's options are in its log file alone.
    """

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        screen, *_ = logger.handlers  # then the file
        screen.addFilter(lambda record: not record.getMessage().lstrip('\n-').startswith(LONG))
        return logger


class ReportHook(Hook):
    """Logs after 20 iterations how long the others will take, and at the end what to test.

    Args:
        test (list[str]): The command that tests a checkpoint, without the checkpoint.
    """

    priority = 'LOWEST'  # CheckpointHook has saved the last checkpoint

    def __init__(self, test: List[str]):
        self.test = test

    def before_train(self, runner) -> None:
        self.start = runner.iter

    def after_train_iter(self, runner, batch_idx: int, data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        done = runner.iter + 1 - self.start
        if done == 10:  # the first ones are slow
            self.begin = time.monotonic()
        if done == 20:
            left = runner.max_iters - runner.iter - 1
            minutes = (time.monotonic() - self.begin) / 10 * left / 60
            runner.logger.info(f'The other {left} iterations will take about {minutes:.1f} min '
                               'on this machine, validations not counted.')

    @master_only
    def after_train(self, runner) -> None:
        known = runner.message_hub.runtime_info
        best = [path for key, path in known.items() if key.startswith('best_ckpt')]
        told = [path for path in best if self.tell(runner, path)]
        if not told and 'last_ckpt' in known:
            runner.logger.info(f'Last checkpoint: {known["last_ckpt"]}')
            runner.logger.info(f'Test it: {shlex.join([*self.test, known["last_ckpt"]])}')

    def tell(self, runner, path: str) -> bool:
        """Log the figures of the best checkpoint, if it is there."""
        try:
            figures = _figures(path)
        except FileNotFoundError:
            runner.logger.warning(f'The best checkpoint, {path}, is gone: the run was killed '
                                  'when a better one took its place.')
            return False
        runner.logger.info(f'Best checkpoint: {path}')
        runner.logger.info(f'Its figures: {figures}')
        runner.logger.info(f'Test it: {shlex.join([*self.test, path])}')
        return True


def _figures(path: str) -> str:
    """The metrics of the validation after which a checkpoint was saved.

    They are read from it, because a run that was resumed may not have seen them.
    """
    scalars = read_checkpoint(path)['message_hub']['log_scalars']
    return ', '.join(f'{name[4:]} {values.current():.4g}' for name, values in scalars.items()
                     if name.startswith('val/') and not name.endswith('time'))
