"""Training that continues when an image cannot be read."""
import logging
from typing import Optional, Set

from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS


@TRANSFORMS.register_module()
class SkipUnreadable:
    """Run a transform that loads an image, and skip the sample if it fails.

    In training, MMEngine's datasets then draw another sample. MMCV's own ``ignore_empty``
    does not skip a file that is not an image, and logs nothing.

    Args:
        transform (dict): Config of the transform.
        at_most (int): How many different files each data loading process may skip. With 0,
            the first unreadable file is an error.

    Raises:
        RuntimeError: More than ``at_most`` files cannot be read.
    """

    def __init__(self, transform: dict, at_most: int = 10):
        self.transform = TRANSFORMS.build(transform)
        self.at_most = at_most
        self.skipped: Set[str] = set()

    def __call__(self, results: dict) -> Optional[dict]:
        """Return the transform's results, or None with a warning that names the file."""
        path = results['img_path']
        try:
            return self.transform(results)
        except Exception as error:  # of the storage or any image library
            self.skipped.add(path)
            if len(self.skipped) > self.at_most:
                raise RuntimeError(
                    f'img_path={path!r} cannot be read, and at_most={self.at_most} files '
                    f'may be skipped: {error!r}') from error
            print_log(f'img_path={path!r} cannot be read; another image takes its place: '
                      f'{error!r}', 'current', logging.WARNING)
            return None

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.transform}, at_most={self.at_most})'
