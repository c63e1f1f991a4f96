"""A static page on which an exported model runs in the browser.

``page/`` has its sources. :mod:`.runtime` fetches ONNX Runtime's build for browsers,
:mod:`.server` serves a folder on this computer.
"""
import contextlib
import json
import shutil
from pathlib import Path
from typing import Sequence, Union

from ...errors import MissingPackageError, UserError
from ...files import write_whole
from . import runtime

PAGE = Path(__file__).with_name('page')
IMAGES = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.webp')  # which browsers decode
# What the file's metadata must have, by the kind of model.
KINDS = {
    'classifier': ('classes', 'test_size', 'activation'),
    'detector': ('classes', 'test_size'),
    'detector with masks': ('classes', 'test_size', 'mask_threshold'),
    'segmenter': ('classes', 'test_size'),
}
OUTPUTS = {
    frozenset(['logits']): 'classifier',
    frozenset(['boxes', 'scores', 'labels']): 'detector',
    frozenset(['boxes', 'scores', 'labels', 'masks']): 'detector with masks',
    frozenset(['labels']): 'segmenter',
}
# How the page can resize, by ``antialias``: Pillow's ways, or OpenCV's.
RESIZING = {True: ('bilinear', 'bicubic', 'nearest'), False: ('bilinear', 'nearest')}


def write_page(model: Union[str, Path], folder: Union[str, Path],
               examples: Sequence[Union[str, Path]] = ()) -> None:
    """Write a folder that any web server can serve.

    It gets the page, the model, ONNX Runtime, and ``model.json`` with what the page needs of
    the model's metadata. Other files that are in the folder stay.

    Args:
        model (str | Path): A file of :func:`mmrest.deploy.export`.
        folder (str | Path): Where to write.
        examples (Sequence[str | Path]): Images to offer on the page.

    Raises:
        UserError: The page cannot show this model or these images, or ONNX Runtime cannot be
            fetched.
    """
    model, folder = Path(model), Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"folder='{folder}' is a file")
    settings = describe_page(model)
    check_examples(examples)
    files = [*sorted(PAGE.iterdir()), *runtime.find()]
    for source in files:
        write_whole(folder / source.name, source.read_bytes())
    write_whole(folder / 'model.onnx', model.read_bytes())
    (folder / 'examples').mkdir(exist_ok=True)
    for example in map(Path, examples):
        with contextlib.suppress(shutil.SameFileError):
            shutil.copyfile(example, folder / 'examples' / example.name)
    settings.update(
        bytes={name: (folder / name).stat().st_size for name in ('model.onnx', runtime.WASM)},
        runtime=runtime.VERSION, examples=[Path(example).name for example in examples])
    write_whole(folder / 'model.json', json.dumps(settings, indent=1).encode())


def describe_page(model: Path) -> dict:
    """What the page needs to know of a model: ``name``, ``kind`` and its metadata.

    Raises:
        UserError: The page cannot show what this file finds.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingPackageError(f'{error}: run `pip install onnx`') from error
    if not model.is_file():
        raise UserError(f"model='{model}': no such file")
    try:
        proto = onnx.load_from_string(model.read_bytes())
    except Exception as error:  # protobuf's DecodeError, of several implementations
        raise UserError(f"model='{model}' is no ONNX file: {error}") from error
    names = [output.name for output in proto.graph.output]
    kind = OUTPUTS.get(frozenset(names))
    if kind is None:
        given = ', '.join(names) or 'nothing'
        raise UserError(f"model='{model}' gives {given}, which the page cannot show: export a "
                        'whole model, without --part backbone')
    metadata = {prop.key: prop.value for prop in proto.metadata_props}
    if 'slide' in metadata:
        raise UserError(f"model='{model}' slides over an image, which the page cannot do: "
                        "export it with test_cfg.mode='whole'")
    if metadata.get('precision') == '"int8"':
        raise UserError(f"model='{model}' is int8, with which ONNX Runtime in a browser finds "
                        'other objects: take float32 or --half')
    for key in KINDS[kind]:
        if key not in metadata:
            raise UserError(f"model='{model}' has no `{key}` in its metadata: write it again "
                            'with tools/deployment/export_onnx.py')
    settings = {key: json.loads(metadata[key]) for key in KINDS[kind]}
    check_resizing(model, settings['test_size'])
    return dict(name=model.stem, kind=kind, **settings)


def check_resizing(model: Path, size: dict) -> None:
    """Refuse a ``test_size`` that the page cannot reach as run_onnx.py does."""
    known = RESIZING[size.get('antialias', False)]
    if size.get('interpolation', 'bilinear') not in known:
        raise UserError(f"model='{model}': the page cannot resize with interpolation="
                        f"{size['interpolation']!r} and antialias={size['antialias']}, only "
                        f'with {", ".join(known)}')


def check_examples(examples: Sequence[Union[str, Path]]) -> None:
    """Refuse examples that browsers do not show, or two with one name."""
    seen = set()
    for example in map(Path, examples):
        if not example.is_file():
            raise UserError(f"examples: '{example}': no such file")
        if example.suffix.lower() not in IMAGES:
            raise UserError(f"examples: '{example}' must be one of {' '.join(IMAGES)}")
        if example.name in seen:
            raise UserError(f"examples: two are named '{example.name}'")
        seen.add(example.name)
