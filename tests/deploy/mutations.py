"""Faults in the graph of an exported Mask R-CNN, each of which the check has to find."""
import numpy as np
import onnx
from onnx import numpy_helper


def node(proto, kind, number):
    return [node for node in proto.graph.node if node.op_type == kind][number]


def set_input(proto, node, number, value):
    """Give a node a constant of its own, which the exporter may share among nodes."""
    name = f'{node.name}_mutated_{number}'
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    node.input[number] = name


def set_weight(proto, name, change):
    """Change an initializer, which is known by the end of its name."""
    tensor, = (one for one in proto.graph.initializer if one.name.endswith(name))
    value = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))


def pass_on(node, number=0):
    """Make a node hand on one of its inputs."""
    kept = node.input[number]
    del node.input[:], node.attribute[:]
    node.input.append(kept)
    node.op_type = 'Identity'


def with_constant(proto, kind, value):
    """Nodes with a constant as their second input."""
    values = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    return [node for node in proto.graph.node if node.op_type == kind
            and node.input[1] in values and values[node.input[1]].size == 1
            and np.isclose(values[node.input[1]], value).all()]


def set_attribute(node, name, value):
    attribute, = (one for one in node.attribute if one.name == name)
    attribute.CopyFrom(onnx.helper.make_attribute(name, value))


def first_nms(proto):
    set_input(proto, node(proto, 'NonMaxSuppression', 0), 3, np.float32([0.6]))


def last_nms(proto):
    set_input(proto, node(proto, 'NonMaxSuppression', 1), 3, np.float32([0.55]))


def score_threshold(proto):
    greater, = with_constant(proto, 'Greater', 0.05)
    set_input(proto, greater, 1, np.float32(0.15))


def stride_off_by_one(proto):
    for mul in with_constant(proto, 'Mul', 16):
        set_input(proto, mul, 1, np.float32(17))


def exchanged_classes(proto):
    set_weight(proto, 'bbox_head.fc_cls.weight', lambda x: x[[1, 0, *range(2, len(x))]])


def exchanged_masks(proto):
    set_weight(proto, 'mask_head.conv_logits.weight', lambda x: np.roll(x, 1, axis=0))


def bgr(proto):
    set_weight(proto, 'preprocess.mean', lambda x: x[::-1])


def roi_half_a_pixel_off(proto):
    set_attribute(node(proto, 'RoiAlign', 0), 'coordinate_transformation_mode',
                  'output_half_pixel')


def roi_stride(proto):
    set_attribute(node(proto, 'RoiAlign', 0), 'spatial_scale', 1 / 5)


def no_clipping(proto):
    pass_on(node(proto, 'Min', -1))


def no_norm_of_attention(proto):
    std = node(proto, 'Sqrt', 0).output[0]  # of the first block
    division, = (one for one in proto.graph.node if std in one.input)
    pass_on(division)


def no_sigmoid_of_masks(proto):
    pass_on(node(proto, 'Sigmoid', -1))


def deltas_of_another_scale(proto):
    values = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    stds, = (name for name, value in values.items() if value.size == 4
             and np.allclose(value.ravel(), [0.1, 0.1, 0.2, 0.2]))
    set_weight(proto, stds, lambda x: 1.05 * x)


MUTATIONS = [first_nms, last_nms, score_threshold, stride_off_by_one, exchanged_classes,
             exchanged_masks, bgr, roi_half_a_pixel_off, roi_stride, no_clipping,
             no_norm_of_attention, no_sigmoid_of_masks, deltas_of_another_scale]
