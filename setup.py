"""What pyproject.toml cannot say: mmrest/.mim, where mim and mmengine look for our files."""
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

here = Path(__file__).resolve().parent
MIM = ('configs', 'tools', 'model-index.yml')


def copy_mim(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(here, folder, ignore=lambda path, names: {
        name for name in names
        if name == '__pycache__' or Path(path) == here and name not in MIM})


def link_mim(folder: Path) -> None:
    """For editable installs: mmrest/.mim leads to the files in the checkout."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        for name in MIM:
            (folder / name).symlink_to(Path('../..') / name)
    except OSError as error:  # Windows reserves links to administrators and developers
        copy_mim(folder)
        print(f'{error}: copied configs and tools instead of linking them. Repeat the '
              f'installation after you edit them.')


class BuildPyWithMim(build_py):
    """Puts .mim into wheels, and links it for editable installs."""

    def run(self):
        super().run()
        if not self.editable_mode:
            copy_mim(Path(self.build_lib, 'mmrest/.mim'))
            return
        link_mim(here / 'mmrest/.mim')
        # OpenMMLab's mim and mmengine join the folder that has the metadata, site-packages,
        # and the first line of top_level.txt. They know no other kind of editable install.
        wheel = Path(self.get_finalized_command('install').install_lib)
        for file in wheel.glob('mmrest-*.dist-info/top_level.txt'):
            file.write_text(f"{here / 'mmrest'}\nmmrest\n", 'utf-8')


setup(cmdclass=dict(build_py=BuildPyWithMim))
