"""ONNX Runtime for browsers: three files of npm's onnxruntime-web, kept in the user's cache."""
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import List

from ...errors import UserError
from ...files import write_whole

VERSION = '1.30.0'
WASM = 'ort-wasm-simd-threaded.wasm'
FILES = ('ort.wasm.min.mjs', 'ort-wasm-simd-threaded.mjs', WASM)


def cache() -> Path:
    """The folder that keeps the three files."""
    home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(home) / 'mmrest' / f'onnxruntime-web-{VERSION}'


def find() -> List[Path]:
    """The three files. npm fetches them the first time, 33 MB.

    Raises:
        UserError: npm is not there, or fails.
    """
    files = [cache() / name for name in FILES]
    if not all(file.is_file() for file in files):
        fetch()
    return files


def fetch() -> None:
    """Let npm fetch the package, and keep the three files of it."""
    with tempfile.TemporaryDirectory() as folder:
        pack(folder)
        archive, = Path(folder).glob('*.tgz')
        with tarfile.open(archive) as package:
            for name in FILES:
                content = package.extractfile(f'package/dist/{name}').read()
                write_whole(cache() / name, content)


def pack(folder: str) -> None:
    """``npm pack``, which runs no scripts and installs no other packages."""
    npm = shutil.which('npm')
    if npm is None:
        raise UserError(f'npm is not installed, {by_hand()}')
    command = [npm, 'pack', f'onnxruntime-web@{VERSION}', '--loglevel=error']
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True)
    if done.returncode:
        reason = ' '.join(done.stderr.replace('npm error ', '').splitlines()[:3])
        raise UserError(f'npm failed ({reason}), {by_hand()}')


def by_hand() -> str:
    return (f'and the page needs three files of its package onnxruntime-web {VERSION}: put '
            f'{", ".join(FILES)} of its folder dist/ into {cache()}')
