"""Files of fewer bytes: weights in float16, or arithmetic in 8-bit integers.

A smaller file is another model. Whether it is as good, the config's validation data says.
"""
import json
import logging
import tempfile
from typing import Dict, Iterable, List, Optional, Sequence

import numpy as np
from mmengine.config import Config

from ..apis import image_pipeline
from ..errors import UserError
from . import verify
from .evaluate import METRICS, OnnxPredictor, Validation

FALL = 0.005  # of AP, top-1 or mIoU as fractions: that much is too much
LEAST = 1024  # elements of a weight that is worth a Cast
LARGEST = 65504  # of float16
CALIBRATION = 32  # pictures


class Smaller:
    """Makes a smaller file of an exported one, if the metric on validation data stays.

    Args:
        cfg (Config): From :func:`~mmrest.apis.read_config`.
        int8 (Sequence[str]): Image files. From :data:`CALIBRATION` of them at most, spread
            evenly, come the ranges of 8-bit integers. Without files, the weights are in
            float16, and the arithmetic stays float32.
        limit (int, optional): See :class:`~mmrest.deploy.evaluate.Validation`.

    Attributes:
        sentence (str): What came of the last call.

    Raises:
        UserError: An image cannot be read, the model slides, or ``Validation`` raises it.
    """

    def __init__(self, cfg: Config, int8: Sequence[str] = (), limit: Optional[int] = None):
        if (cfg.model.get('test_cfg') or {}).get('mode') == 'slide':
            raise UserError("model.test_cfg.mode='slide' has no smaller file, only 'whole'")
        self.validation, self.sentence = Validation(cfg, limit), ''
        number = min(len(int8), CALIBRATION)
        self.images = read(cfg, [int8[i * len(int8) // number] for i in range(number)])

    def __call__(self, proto):
        """A smaller ``onnx.ModelProto`` of the same inputs and outputs.

        Raises:
            UserError: A metric falls by :data:`FALL` or more, or says nothing.
        """
        small = quantize(proto, self.images) if self.images else halve(proto)
        precision = 'int8' if self.images else 'float16 weights'
        for item in small.metadata_props:
            if item.key == 'precision':
                item.value = json.dumps(precision)
        models = [OnnxPredictor(one.SerializeToString()) for one in (proto, small)]
        check_outputs(*models)
        figures = compare(*map(self.validation, models))
        sizes = ' -> '.join(f'{one.ByteSize() / 1e6:.1f}' for one in (proto, small))
        used = f', calibrated on {len(self.images)}' if self.images else ''
        self.sentence = (f'{precision}, {sizes} MB; {figures} on '
                         f'{len(self.validation.indices)} pictures{used}')
        return small


def read(cfg: Config, paths: Sequence[str]) -> List[np.ndarray]:
    """RGB images (1, 3, H, W), uint8, as the config's test pipeline makes them of files."""
    pipeline, images = image_pipeline(cfg), []
    for path in paths:
        try:
            image = pipeline(dict(img_path=str(path), img_id=0))['inputs']
        except Exception as error:  # of any decoder
            raise UserError(f'int8: {path} cannot be read ({error})') from error
        images.append(image.flip(0)[None].numpy())
    return images


def halve(proto):
    """A copy of an ``onnx.ModelProto`` with its large weights in float16.

    A Cast of each makes float32 of it, which runtimes compute once, when they load the file.
    """
    from onnx import ModelProto, TensorProto, helper, numpy_helper
    half, casts = ModelProto(), []
    half.CopyFrom(proto)
    for tensor in half.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        name, weight = tensor.name, numpy_helper.to_array(tensor)
        if weight.size >= LEAST and np.abs(weight).max() <= LARGEST:
            tensor.CopyFrom(numpy_helper.from_array(weight.astype(np.float16), f'{name}_half'))
            casts.append(helper.make_node('Cast', [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *half.graph.node]
    del half.graph.node[:]
    half.graph.node.extend(nodes)
    return half


class Calibration:
    """Images for ``quantize_static``, one after the other."""

    def __init__(self, images: Iterable[np.ndarray]):
        self.images = iter(images)

    def get_next(self) -> Optional[Dict[str, np.ndarray]]:
        image = next(self.images, None)
        return None if image is None else dict(image=image)


def quantize(proto, images: Iterable[np.ndarray]):
    """A copy of an ``onnx.ModelProto`` that computes convolutions and products of 8 bits.

    Those of the RPN stay float32, because a small error there changes which boxes are looked
    at. So do attention's products: onnxruntime's quantiser does not look into a Scan.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static
    rpn = [node.name for node in proto.graph.node if any('rpn_' in x for x in node.input)]
    with tempfile.TemporaryDirectory() as folder:
        source, target = f'{folder}/float32.onnx', f'{folder}/int8.onnx'
        onnx.save(proto, source)
        logging.disable(logging.WARNING)  # advice to fold BatchNorm, which the exporter does
        try:
            quantize_static(
                source, target, Calibration(images), per_channel=True, nodes_to_exclude=rpn,
                op_types_to_quantize=['Conv', 'MatMul', 'Gemm'],
                weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8)
        finally:
            logging.disable(logging.NOTSET)
        small = onnx.load(target)
    del small.metadata_props[:]  # to which the quantiser adds
    small.metadata_props.extend(proto.metadata_props)
    return small


def check_outputs(whole: OnnxPredictor, small: OnnxPredictor) -> None:
    """Refuse a file whose outputs have other names, types or shapes, at the check's sizes."""
    for size in verify.SIZES:
        wanted, found = (
            {name: f'{x.dtype} {x.shape}' for name, x in model.run(
                verify.pictures(size).numpy()).items()} for model in (whole, small))
        if found != wanted:
            raise UserError(f'not written: the outputs are {found}, not {wanted}')


def compare(before: Dict[str, float], after: Dict[str, float]) -> str:
    """Metrics of a file and of a smaller one in words.

    Raises:
        UserError: See :class:`Smaller`. A metric that is below :data:`FALL` cannot fall by
            that much, and so says nothing.
    """
    if not before or not all(value >= FALL for value in before.values()):
        raise UserError(f'not written: of {", ".join(METRICS)} on the validation data, the '
                        f'float32 file has {before or "none"}: too little to say whether a '
                        'smaller one is as good')
    figures = {name: f'{name} {value:.3f} -> {after.get(name, 0.):.3f}'
               for name, value in before.items()}
    falls = [figures[name] for name, value in before.items()
             if not round(value - after.get(name, 0.), 6) < FALL]
    if falls:
        raise UserError(f'not written: {", ".join(falls)} on the validation data, a fall of '
                        f'{FALL} or more')
    return ', '.join(figures.values())
