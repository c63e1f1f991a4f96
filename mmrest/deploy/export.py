"""Whole models as ONNX files that run without PyTorch and mm."""
import importlib
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Optional, Sequence, Tuple, Union

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import Tensor, nn

from ..apis import find_rest
from ..errors import MissingPackageError, UserError
from ..files import write_whole
from ..safe_reading import read_file
from . import detectors, emsa_onnx, known, verify
from .dense import Backbone, OnnxClassifier, OnnxModel, replace_constants, segmenter
from .smaller import Smaller
from .verify_boxes import check_detections

# What exports a model of mm, and what checks the result.
FAMILIES = {
    'ImageClassifier': (OnnxClassifier, verify.check_logits),
    'EncoderDecoder': (segmenter, verify.check_label_maps),
    **dict.fromkeys(('RetinaNet', 'FCOS', 'ATSS', 'GFL', 'RTMDet'),
                    (detectors.OneStage, check_detections)),
    **dict.fromkeys(('FasterRCNN', 'MaskRCNN', 'CascadeRCNN'),
                    (detectors.TwoStage, check_detections)),
}
EXPORTED = (2, 128, 160)  # batch, height and width of the example
COUNTS = ('pictures', 'boxes', 'near-ties')  # added up; of all else the largest counts


def export(model: nn.Module,
           path: Union[str, Path],
           metadata: Optional[Dict[str, str]] = None,
           backbone: bool = False,
           images: Sequence[str] = (),
           smaller: Optional[Smaller] = None) -> Dict[str, float]:
    """Write a model as one ONNX file of standard operators, for any batch, height and width.

    The file takes ``image``, uint8 RGB (B, 3, H, W), and gives what the classes of
    :mod:`mmrest.deploy.dense` and :mod:`mmrest.deploy.detectors` say. The backbone alone takes
    float32, as the data preprocessor gives it.

    Args:
        model (nn.Module): A whole model of mm in eval mode, see
            :func:`~mmrest.apis.build_model`. It is not changed.
        path (str | Path): The file.
        metadata (dict, optional): The file's metadata, see :func:`describe`. Of a classifier
            the file also has ``activation``, ``softmax`` or ``sigmoid``, of masks
            ``mask_threshold``, of a segmenter in mode 'slide' ``slide``; of all,
            ``precision``.
        backbone (bool): Whether to export the model's ResT alone.
        images (Sequence[str]): Image files to check a detector on, which may find nothing in
            random pictures. A warning says so.
        smaller (Smaller, optional): Makes a smaller file of the checked one, which is written
            in its place.

    Returns:
        dict[str, float]: The largest differences from mm's ``predict`` on ``pictures`` of the
        sizes in :data:`mmrest.deploy.verify.SIZES`. Of a detector, also how many ``boxes`` were
        compared. :func:`mmrest.deploy.verify.sentence` says it.

    Raises:
        UserError: The model has an option or a part that is not known, onnxruntime disagrees
            with mm's ``predict`` at one of these sizes, or the smaller file is worse. Nothing
            is written.
        ImportError: A package that writes or runs ONNX is not installed.
    """
    try:
        for package in ('onnx', 'onnxscript', 'onnxruntime'):
            importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f'{error}: run `pip install onnx onnxruntime onnxscript`') from error
    if backbone and smaller:
        raise UserError('a smaller file is compared by the metric of a whole model, and a '
                        'backbone alone has none')
    model, network, check = resolve(model, backbone)
    proto = to_onnx(network, metadata or {})
    errors = compare(proto.SerializeToString(), model, network, check, images)
    if errors.get('boxes') == 0:
        warnings.warn('neither mm nor ONNX finds a box in the pictures that the file was '
                      'checked on; check it on images with objects in them', stacklevel=2)
    for output in [x for x in proto.graph.output if x.name in network.probes]:
        proto.graph.output.remove(output)
    if smaller:
        proto = smaller(proto)
    write_whole(path, proto.SerializeToString())
    return errors


def resolve(model: nn.Module, backbone: bool) -> Tuple[nn.Module, OnnxModel, Callable]:
    """What is exported of a model, as it is and as a module for the exporter, and its check."""
    kind = type(model).__name__
    if backbone:
        model, wrapper, check = find_rest(model), Backbone, verify.check_features
    elif kind in FAMILIES:
        wrapper, check = FAMILIES[kind]
    else:
        raise UserError(f'{kind} cannot be exported as a whole, only {sorted(FAMILIES)}; '
                        'its ResT can (--part backbone)')
    return model, wrapper(replace_constants(model)).eval(), check


def picture(network: nn.Module, size: Tuple[int, int, int], files: Sequence[str] = (),
            number: int = 0) -> Tensor:
    """An input of a network: RGB, or about what normalisation gives."""
    image = verify.pictures(size, files, number)
    return (image - 128.) / 64. if isinstance(network, Backbone) else image


def compare(content: bytes, model: nn.Module, network: OnnxModel, check: Callable,
            files: Sequence[str]) -> Dict[str, float]:
    """The largest differences from ``predict``, see :func:`export`."""
    import onnxruntime
    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    result: Dict[str, float] = {}
    for number, size in enumerate((*verify.SIZES, *network.more_sizes)):
        image = picture(network, size, files, number)
        outputs = network.outputs(partial(session.run, None), image)
        try:
            errors = check(model, image, outputs)
        except UserError as error:
            sizes = 'x'.join(map(str, size))
            raise UserError(f"not written: at {sizes}, ONNX disagrees with mm's predict: "
                            f'{error}') from error
        errors['pictures'] = len(image)
        for name, value in errors.items():
            before = result.get(name, 0.)
            result[name] = before + value if name in COUNTS else max(value, before)
    return result


def to_onnx(network: nn.Module, metadata: Dict[str, str]):
    """An ``onnx.ModelProto`` of an export class."""
    import onnx
    emsa_onnx.choose(network)
    dynamic = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # deprecations inside torch.onnx
        program = torch.onnx.export(
            network, (picture(network, EXPORTED), ), dynamo=True, verbose=False,
            input_names=['image'], output_names=[*network.names, *network.probes],
            dynamic_shapes=dict(image={0: dynamic, 2: dynamic, 3: dynamic}),
            custom_translation_table={**emsa_onnx.translations(), **detectors.translations()})
    proto = emsa_onnx.fill(program.model_proto)
    for axis, name in ((0, 'batch'), (2, 'height'), (3, 'width')):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    strip(proto)
    own = {name: json.dumps(value)
           for name, value in dict(network.metadata, precision='float32').items()}
    onnx.helper.set_model_props(proto, {**metadata, **own})
    onnx.checker.check_model(proto, full_check=True)
    return proto


def strip(proto) -> None:
    """Drop the exporter's notes, which have the folders of this machine in them."""
    graph = proto.graph
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output,
                 *graph.initializer, graph):
        del part.metadata_props[:]
        part.ClearField('doc_string')


def describe(cfg: Config, checkpoint: Optional[str] = None) -> Dict[str, str]:
    """Metadata of a config's model, in JSON.

    Args:
        cfg (Config): From :func:`~mmrest.apis.read_config`.
        checkpoint (str, optional): Knows the classes, if it is from a training.

    Returns:
        dict[str, str]: ``classes``, their names, as far as the checkpoint or the config has
        them; ``test_size``, what the config's test pipeline does to an image's size:
        ``scale`` [w, h] with ``keep_ratio``, or the short ``edge``; then ``crop`` [w, h], or
        ``pad`` [w, h] at the bottom and at the right with ``pad_value`` in RGB;
        ``interpolation``; and ``antialias``. ``mean``, ``std`` and ``channel_order`` of what
        the backbone gets.
    """
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    to_rgb = preprocessor.get('to_rgb', preprocessor.get('bgr_to_rgb', False))
    return dict(
        classes=json.dumps(find_classes(cfg, checkpoint)),
        test_size=json.dumps(find_test_size(cfg)),
        mean=json.dumps(list(preprocessor.get('mean') or ())),
        std=json.dumps(list(preprocessor.get('std') or ())),
        channel_order='RGB' if to_rgb else 'BGR')


def find_classes(cfg: Config, checkpoint: Optional[str]) -> list:
    if checkpoint is not None:
        content, _ = read_file(checkpoint)
        meta = content.get('meta')
        if isinstance(meta, dict) and (meta.get('dataset_meta') or {}).get('classes'):
            return list(meta['dataset_meta']['classes'])
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    if (dataset.get('metainfo') or {}).get('classes'):
        return list(dataset.metainfo.classes)
    with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        kind = registry.get(dataset.get('type', ''))
    return list((getattr(kind, 'METAINFO', None) or {}).get('classes') or ())


def find_test_size(cfg: Config) -> dict:
    size: dict = {}
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    for step in dataset.get('pipeline', ()):
        kind = step.type if isinstance(step.type, str) else step.type.__name__
        kind = kind.rpartition('.')[2]
        check_step(kind, step, size)
        if kind in ('Resize', 'ResizeEdge'):
            scale = step.scale
            if kind == 'ResizeEdge':
                size['edge'] = scale
            else:
                size['scale'] = [scale, scale] if isinstance(scale, int) else list(scale)
                size['keep_ratio'] = step.get('keep_ratio', False)
            size['interpolation'] = step.get('interpolation', 'bilinear')
            size['antialias'] = step.get('backend') == 'pillow'
        elif kind == 'CenterCrop':
            crop = step.crop_size
            size['crop'] = [crop, crop] if isinstance(crop, int) else list(crop)
        elif kind == 'Pad':
            value = step.get('pad_val', 0)
            value = value.get('img', 0) if isinstance(value, dict) else value
            size['pad'] = list(step.size)
            size['pad_value'] = [value] * 3 if isinstance(value, int) else list(value)[::-1]
    return size


def check_step(kind: str, step: dict, before: dict) -> None:
    """Refuse a step of the test pipeline that is not known.

    Args:
        kind (str): Its class.
        step (dict): Its config.
        before (dict): What the steps before do to an image's size.
    """
    if kind not in known.STEPS:
        raise UserError(f'test pipeline: a step of type={kind!r} cannot be exported, only '
                        f'{", ".join(known.STEPS)}')
    if known.STEPS[kind] is None:
        return
    if {'crop', 'pad'} & set(before) or before and kind not in ('CenterCrop', 'Pad'):
        raise UserError(f'test pipeline: {kind} after another step that changes the size '
                        'cannot be exported')
    options = {name: value for name, value in step.items() if name != 'type'}
    known.check_options(options, known.STEPS[kind], f'test pipeline: {kind}')
    if kind in ('Resize', 'ResizeEdge') and options.get('interpolation') == 'bicubic' and (
            options.get('backend', 'cv2') == 'cv2'):
        raise UserError(f"test pipeline: {kind}.interpolation='bicubic' cannot be exported, "
                        "but with backend='pillow'")
