from pathlib import Path

from setuptools import setup
from setuptools.command.develop import develop
from setuptools.command.editable_wheel import editable_wheel


def refuse(self):
    raise SystemExit(
        'mmcv-torchvision-ops cannot be installed with -e: its folder would hide mmcv itself.')


setup(
    name='mmcv-torchvision-ops',
    version='0.1.0',
    description="mmcv's operators by torchvision: no compiler, any PyTorch",
    long_description=Path(__file__).with_name('README.md').read_text('utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    py_modules=['mmcv._ext'],  # one file for mmcv's folder, which is not ours
    python_requires='>=3.11',
    install_requires=['torch>=2.7', 'torchvision>=0.22'],
    cmdclass={
        'develop': type('develop', (develop,), {'run': refuse}),
        'editable_wheel': type('editable_wheel', (editable_wheel,), {'run': refuse}),
    },
)
