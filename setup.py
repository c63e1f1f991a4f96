import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.develop import develop

here = Path(__file__).resolve().parent
# What mim and mmengine look for in mmrest/.mim.
MIM = ('configs', 'tools', 'model-index.yml')


def link_mim() -> None:
    """For editable installs: mmrest/.mim leads to the files in the checkout."""
    folder = here / 'mmrest/.mim'
    folder.mkdir(exist_ok=True)
    for name in MIM:
        link = folder / name
        if link.is_symlink():
            link.unlink()
        link.symlink_to(Path('../..') / name)


class BuildPyWithMim(build_py):
    """Puts .mim into wheels, and links it for today's editable installs (PEP 660)."""

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False):
            link_mim()
            return
        for name in MIM:
            target = Path(self.build_lib, 'mmrest/.mim', name)
            if (here / name).is_dir():
                shutil.copytree(
                    here / name, target, dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns('__pycache__', '*.pyc'))
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(here / name, target)


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
                 'ruff'],
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
