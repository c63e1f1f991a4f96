import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent


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
    include_package_data=True,
    python_requires='>=3.8',
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
            'mmcv>=2.1.0,<2.2.0',
            'mmdet==3.3.0',
            'mmpretrain',
            'mmsegmentation',
            'ftfy',
            'regex',
        ],
        # enough for the backbone alone
        'mmengine': ['onedl-mmengine==0.10.12'],
        'demo': ['matplotlib', 'psutil', 'scikit-learn'],
        'test': ['pytest', 'ruff'],
    },
    classifiers=[
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    zip_safe=False,
)
