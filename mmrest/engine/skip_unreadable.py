"""Training goes on where one of its images cannot be read."""
import logging
from typing import Optional

from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS


@TRANSFORMS.register_module()
class SkipUnreadable:
    """Runs a transform that loads an image, and leaves out samples where it fails.

    In training, MMEngine's datasets draw another sample then. MMCV's own option
    ``ignore_empty`` says nothing about files it skips, and does not skip what is no image.

    Args:
        transform (dict): Config of the transform.
        at_most (int): How many different files may be left out, in each process that loads
            data; 0 stops at the first.

    Raises:
        RuntimeError: There is one file more.
    """

    def __init__(self, transform: dict, at_most: int = 10):
        self.transform = TRANSFORMS.build(transform)
        self.at_most = at_most
        self.left_out = set()

    def __call__(self, results: dict) -> Optional[dict]:
        """The transform's results, or None, with a warning that names the file."""
        path = results['img_path']
        try:
            return self.transform(results)
        except Exception as error:  # of the storage, or of any image library
            self.left_out.add(path)
            if len(self.left_out) > self.at_most:
                raise RuntimeError(
                    f'img_path={path!r} cannot be read, and at_most={self.at_most} files '
                    f'may be left out: {error!r}') from error
            print_log(f'img_path={path!r} cannot be read; another image takes its place: '
                      f'{error!r}', 'current', logging.WARNING)
            return None

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.transform}, at_most={self.at_most})'
