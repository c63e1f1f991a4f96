"""Files that are on disk whole or not at all."""
import os
from pathlib import Path
from typing import Union


def write_whole(path: Union[str, Path], content: bytes) -> None:
    """Write a file beside ``path``, then rename it, and make its folders.

    What a symbolic link leads to is written, as by ``open()``.

    Args:
        path (str | Path): The file.
        content (bytes): Its new content.

    Raises:
        OSError: It cannot be written. The old file, if there is one, is unchanged.
    """
    path = os.path.realpath(path)  # a link stays one
    partial = f'{path}.partial'
    os.makedirs(os.path.dirname(partial) or '.', exist_ok=True)
    try:
        with open(partial, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        error.filename = error.filename or partial  # a full disk names no file
        if os.path.exists(partial):
            os.remove(partial)  # its room is free for the next try
        raise
