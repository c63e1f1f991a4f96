import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.develop import develop

here = Path(__file__).resolve().parent
# What mim and mmengine look for in mmrest/.mim.
MIM = ('configs', 'tools', 'model-index.yml')


def copy_mim(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(here, folder, ignore=lambda path, names: {
        name for name in names
        if name == '__pycache__' or Path(path) == here and name not in MIM})


def link_mim() -> None:
    """For editable installs: mmrest/.mim leads to the files in the checkout."""
    folder = here / 'mmrest/.mim'
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
    """Puts .mim into wheels, and links it for today's editable installs (PEP 660)."""

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False):
            link_mim()
        else:
            copy_mim(Path(self.build_lib, 'mmrest/.mim'))


class DevelopWithMim(develop):
    """Links .mim for editable installs of older tools."""

    def run(self):
        link_mim()
        super().run()


def read_version() -> str:
    """Read ``__version__`` without importing mmrest, which needs torch."""
    text = (here / 'mmrest/version.py').read_text('utf-8')
    return re.search(r"^__version__ = ['\"]([^'\"]+)", text, re.M).group(1)


setup(
    name='mmrest',
    version=read_version(),
    description='The ResT vision backbone for OpenMMLab',
    long_description=(here / 'README.md').read_text('utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmrest', 'mmrest.*']),
    package_data={'mmrest': ['py.typed']},
    python_requires='>=3.10',
    install_requires=['torch'],
    extras_require={
        # OneDL's continuation of OpenMMLab, for today's torch
        'onedl': [
            'onedl-mmengine==0.10.12',
            'onedl-mmcv==2.3.6',
            'onedl-mmdetection==3.5.1',
            'onedl-mmpretrain==1.3.6',
            'onedl-mmsegmentation==1.4.2',
            'ftfy',
            'regex',
        ],
        # OpenMMLab's own last releases, for torch 2.1
        'openmmlab': [
            'mmengine',
            'mmcv-lite==2.1.0',
            'numpy<2',
            'mmdet==3.3.0',
            'mmpretrain',
            'mmsegmentation',
            'ftfy',
            'regex',
        ],
        # enough for the backbone alone
        'mmengine': ['onedl-mmengine==0.10.12'],
        'demo': ['matplotlib', 'scikit-learn'],
        # tools/analysis_tools, tools/deployment, safetensors
        'tools': ['grad-cam', 'onnx', 'onnxruntime', 'onnxscript', 'safetensors', 'seaborn'],
        'docs': ['furo', 'ipykernel', 'myst-parser', 'nbclient', 'nbformat', 'sphinx'],
        'test': ['codespell', 'hypothesis', 'mypy', 'pre-commit', 'pytest', 'pytest-xdist',
                 'ruff', 'segmentation-models-pytorch', 'timm'],
    },
    classifiers=[
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    cmdclass=dict(build_py=BuildPyWithMim, develop=DevelopWithMim),
    zip_safe=False,
)
