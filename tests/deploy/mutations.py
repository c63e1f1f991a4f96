"""Faults in the graph of an exported Mask R-CNN, each of which the check has to find."""
import numpy as np
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


def with_constant(proto, kind, value):
    """Nodes with a constant as their second input."""
    values = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    return [node for node in proto.graph.node if node.op_type == kind
            and node.input[1] in values and values[node.input[1]].size == 1
            and np.isclose(values[node.input[1]], value).all()]


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


def exchanged_masks(proto):
    set_weight(proto, 'mask_head.conv_logits.weight', lambda x: np.roll(x, 1, axis=0))


def deltas_of_another_scale(proto):
    values = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    stds, = (name for name, value in values.items() if value.size == 4
             and np.allclose(value.ravel(), [0.1, 0.1, 0.2, 0.2]))
    set_weight(proto, stds, lambda x: 1.05 * x)


# The smallest of each kind: proposals, boxes and masks that are wrong, missing or too many.
MUTATIONS = [first_nms, last_nms, score_threshold, stride_off_by_one, exchanged_masks,
             deltas_of_another_scale]
