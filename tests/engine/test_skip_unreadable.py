"""SkipUnreadable, in place of the image loader of a training pipeline."""
import logging

import cv2
import pytest
from mmcv.transforms import LoadImageFromFile

from mmrest.engine import SkipUnreadable, skip_unreadable

from ..tiny_data import draw


def test_files_that_cannot_be_read_are_skipped_up_to_a_number(tmp_path, monkeypatch):
    paths = [tmp_path / f'{i}.png' for i in range(5)]
    for path in paths[:2]:
        draw(path, 0)
    paths[1].write_bytes(paths[1].read_bytes()[:80])
    paths[2].write_bytes(b'')
    paths[3].write_bytes(b'no image')
    log = []
    monkeypatch.setattr(skip_unreadable, 'print_log', lambda *args: log.append(args))
    step = SkipUnreadable(dict(type=LoadImageFromFile), at_most=4)
    for _ in range(2):  # each counts once
        for path in paths[1:]:
            assert step(dict(img_path=str(path))) is None
            text, logger, level = log.pop()
            assert text.startswith(f"img_path='{path}' cannot be read; another image takes its")
            assert (logger, level) == ('current', logging.WARNING)
    assert step.skipped == set(map(str, paths[1:]))
    found = step(dict(img_path=str(paths[0])))['img']
    assert (found == cv2.imread(str(paths[0]))).all()
    step.at_most = 3
    with pytest.raises(RuntimeError, match=f"img_path='{paths[4]}' .*, and at_most=3 files"):
        step(dict(img_path=str(paths[4])))
