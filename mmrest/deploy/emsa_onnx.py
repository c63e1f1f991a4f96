"""EMSA's attention in ONNX: a Scan over blocks of queries, in standard operators.

PyTorch's own exporter writes the equations, with the whole N x M map in memory. Here attention
is one node while a model is exported, the operator of :mod:`mmrest.ops.emsa.chunked`, and
:func:`fill` replaces it by the function below. Only our exporter asks for that: others that
export a ResT get the equations in plain operators.
"""
from typing import Optional

import numpy as np
import torch
from torch import nn

DOMAIN = 'mmrest'
BLOCK = 2**20  # elements of the map in a block, of all images and heads

# The queries are padded by zeros to whole blocks. Such a row of the map is 1 / M everywhere, so
# that its centred row adds nothing to the sum of squares.
#
# The Scan's body names no dimension, because onnxruntime reuses buffers by name. It gets k, v,
# mix and level as states that never change, because OpenVINO miscounts values from outside.
TEXT = '''
<domain: "{domain}", opset_import: ["" : {opset}]>
{name} <eps> (q, k, v{mix}) => (out)
{{
    B = Shape <start = 0, end = 1> (q)
    h = Shape <start = 1, end = 2> (q)
    N = Shape <start = 2, end = 3> (q)
    d = Shape <start = 3, end = 4> (q)
    M = Shape <start = 2, end = 3> (k)
    zero = Constant <value = int64[1] {{0}}> ()
    one = Constant <value = int64[1] {{1}}> ()
    two = Constant <value = int64[1] {{2}}> ()

    # rows = max(min(BLOCK / (B h M), N), 1)
    elements = Constant <value = int64[1] {{{block}}}> ()
    Bh = Mul (B, h)
    BhM = Mul (Bh, M)
    fitting = Div (elements, BhM)
    at_most_N = Min (fitting, N)
    rows = Max (at_most_N, one)
    N_and_rows = Add (N, rows)
    N_and_rows_less = Sub (N_and_rows, one)
    blocks = Div (N_and_rows_less, rows)
    padded = Mul (blocks, rows)
    pad = Sub (padded, N)
    no_pads = Constant <value = int64[6] {{0, 0, 0, 0, 0, 0}}> ()
    pads = Concat <axis = 0> (no_pads, pad, zero)

    q_padded = Pad (q, pads)
    split = Concat <axis = 0> (B, h, blocks, rows, d)
    q_split = Reshape (q_padded, split)
    q_blocks = Transpose <perm = [2, 0, 1, 3, 4]> (q_split)
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    M_float = CastLike (M, q)
    level = Reciprocal (M_float)
    sum_shape = Concat <axis = 0> (B, h, one, one)
    no_sum = ConstantOfShape (sum_shape)

    squares, kt_1, v_1, level_1{mix_1}, outs = Scan <num_scan_inputs = 1, body = block (
        float[?, ?, 1, 1] sum_in, float[?, ?, ?, ?] kt_in, float[?, ?, ?, ?] v_in,
        float[1] level_in{mix_in}, float[?, ?, ?, ?] q_in
    ) => (
        float[?, ?, 1, 1] sum_out, float[?, ?, ?, ?] kt_out, float[?, ?, ?, ?] v_out,
        float[1] level_out{mix_out}, float[?, ?, ?, ?] block_out
    ) {{
        kt_out = Identity (kt_in)
        v_out = Identity (v_in)
        level_out = Identity (level_in)
        scores = MatMul (q_in, kt_in)
        {body}
    }}> (no_sum, kt, v, level{mix}, q_blocks)

    joined = Transpose <perm = [1, 2, 0, 3, 4]> (outs)
    whole = Concat <axis = 0> (B, h, padded, d)
    joined_whole = Reshape (joined, whole)
    unpadded = Slice (joined_whole, zero, N, two)
    {end}
}}
'''
MIX = '''
        mix_out = Identity (mix_in)
        flat_shape = Constant <value = int64[3] {0, 0, -1}> ()
        flat = Reshape (scores, flat_shape)
        mixed_flat = MatMul (mix_in, flat)
        map_shape = Shape (scores)
        mixed = Reshape (mixed_flat, map_shape)
        attn = Softmax <axis = -1> (mixed)'''
NO_MIX = '''
        attn = Softmax <axis = -1> (scores)'''
NORM = '''
        centred = Sub (attn, level_in)
        last_two = Constant <value = int64[2] {-2, -1}> ()
        squared = ReduceSumSquare <keepdims = 1> (centred, last_two)
        sum_out = Add (sum_in, squared)
        block_out = MatMul (centred, v_in)'''
NO_NORM = '''
        sum_out = Identity (sum_in)
        block_out = MatMul (attn, v_in)'''
NORM_END = '''
    NM = Mul (N, M)
    NM_float = CastLike (NM, q)
    var = Div (squares, NM_float)
    eps = Constant <value_float: float = @eps> ()
    var_eps = Add (var, eps)
    std = Sqrt (var_eps)
    out = Div (unpadded, std)'''
NO_NORM_END = '''
    out = Identity (unpadded)'''


def choose(model: nn.Module) -> None:
    """Make every attention of a model one node of its exported graph."""
    for module in model.modules():
        if hasattr(module, 'backend'):
            module.backend = 'chunked'


def translations() -> dict:
    """What ``torch.onnx.export`` writes for the node, which :func:`fill` replaces."""
    from onnxscript import FLOAT
    from onnxscript import opset18 as op

    def attention(q: FLOAT, k: FLOAT, v: FLOAT, mix: Optional[FLOAT], scale: float,
                  normalize: bool, eps: float):
        k = op.Mul(k, op.Constant(value_float=scale))
        node = placeholder(mix is not None, normalize)
        out = node(*([q, k, v] if mix is None else [q, k, v, mix]), eps=eps)
        return out, op.Constant(value_float=0.)  # r, which nobody reads

    return {torch.ops.mmrest.emsa_chunked.default: attention}


def placeholder(mix: bool, normalize: bool):
    """An operator that onnxscript can call, with the name and the inputs of the function."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset
    name = function_name(mix, normalize)
    schema = OpSchema(
        name, DOMAIN, 1, type_constraints=[('T', ['tensor(float)'], '')],
        inputs=[OpSchema.FormalParameter(x, 'T') for x in ['q', 'k', 'v'] + ['mix'] * mix],
        outputs=[OpSchema.FormalParameter('out', 'T')],
        attributes=[OpSchema.Attribute('eps', OpSchema.AttrType.FLOAT)])
    return Op(Opset(DOMAIN, 1), name, schema)


def function_name(mix: bool, normalize: bool) -> str:
    return 'EMSA' + 'Mix' * mix + 'Norm' * normalize


def function(mix: bool, normalize: bool, opset: int):
    """The attention as an ``onnx.FunctionProto``."""
    from onnx.parser import parse_function
    return parse_function(TEXT.format(
        domain=DOMAIN, opset=opset, name=function_name(mix, normalize), block=BLOCK,
        mix=', mix' * mix, mix_1=', mix_1' * mix, mix_in=', float[?, ?] mix_in' * mix,
        mix_out=', float[?, ?] mix_out' * mix, body=(MIX if mix else NO_MIX) + (
            NORM if normalize else NO_NORM), end=NORM_END if normalize else NO_NORM_END))


def fill(model):
    """Return an ``onnx.ModelProto`` whose attention is in standard operators."""
    from onnx.inliner import inline_local_functions
    opset, = (item.version for item in model.opset_import if not item.domain)
    model.functions.extend(
        function(mix, normalize, opset) for mix in (False, True) for normalize in (False, True))
    model = inline_local_functions(model)
    standard, = (item for item in model.opset_import if not item.domain)
    del model.opset_import[:]
    model.opset_import.append(standard)
    make_tensors(model.graph)
    return model


def make_tensors(graph) -> None:
    """Write the constants of an ``onnx.GraphProto`` as tensors, in the Scans' bodies too.

    Tools that convert numbers to float16 know no other kind.
    """
    from onnx import AttributeProto, helper, numpy_helper
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                make_tensors(attribute.g)
            elif node.op_type == 'Constant' and attribute.name != 'value':
                kind = np.float32 if attribute.name.startswith('value_float') else np.int64
                value = np.array(helper.get_attribute_value(attribute), kind)
                attribute.CopyFrom(helper.make_attribute(
                    'value', numpy_helper.from_array(value)))
