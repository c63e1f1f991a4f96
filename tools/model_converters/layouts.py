"""The names of ResT's and ResTv2's models in four layouts, and the tables between them.

    published    the paper's ImageNet code     stem.*, stage1.*, ..., norm.*, head.*
    mmpretrain   configs/classification        backbone.*, head.fc.*
    detectron2   the paper's detection code    backbone.bottom_up.*, backbone.fpn_*, ...
    mmdet        configs/mask_rcnn, retinanet  backbone.*, neck.*, rpn_head.*, ...

Sources: github.com/wofmanaf/ResT (models/rest.py, object_detection/), detectron2's modeling/
and mmdet's models/.
"""
from typing import Dict, List, NamedTuple, Tuple, Type

import torch
from torch import Tensor

from mmrest import ResT, ResTV2
from mmrest.errors import UserError
from mmrest.models.checkpoint import DETECTION_LARGE

# Modules of detectron2 by those of mmdet; each has a weight and a bias.
_FASTER_RCNN = {
    **{f'backbone.fpn_lateral{i + 2}': f'neck.lateral_convs.{i}.conv' for i in range(4)},
    **{f'backbone.fpn_output{i + 2}': f'neck.fpn_convs.{i}.conv' for i in range(4)},
    'proposal_generator.rpn_head.conv': 'rpn_head.rpn_conv',
    'proposal_generator.rpn_head.objectness_logits': 'rpn_head.rpn_cls',
    'proposal_generator.rpn_head.anchor_deltas': 'rpn_head.rpn_reg',
    'roi_heads.box_head.fc1': 'roi_head.bbox_head.shared_fcs.0',
    'roi_heads.box_head.fc2': 'roi_head.bbox_head.shared_fcs.1',
    'roi_heads.box_predictor.cls_score': 'roi_head.bbox_head.fc_cls',
    'roi_heads.box_predictor.bbox_pred': 'roi_head.bbox_head.fc_reg',
}
_MASK_HEAD = {
    **{f'roi_heads.mask_head.mask_fcn{i + 1}': f'roi_head.mask_head.convs.{i}.conv'
       for i in range(4)},
    'roi_heads.mask_head.deconv': 'roi_head.mask_head.upsample',
    'roi_heads.mask_head.predictor': 'roi_head.mask_head.conv_logits',
}
_RETINANET = {
    **{f'backbone.fpn_lateral{i + 3}': f'neck.lateral_convs.{i}.conv' for i in range(3)},
    **{f'backbone.fpn_output{i + 3}': f'neck.fpn_convs.{i}.conv' for i in range(3)},
    'backbone.top_block.p6': 'neck.fpn_convs.3.conv',
    'backbone.top_block.p7': 'neck.fpn_convs.4.conv',
    **{f'head.cls_subnet.{2 * i}': f'bbox_head.cls_convs.{i}.conv' for i in range(4)},
    **{f'head.bbox_subnet.{2 * i}': f'bbox_head.reg_convs.{i}.conv' for i in range(4)},
    'head.cls_score': 'bbox_head.retina_cls',
    'head.bbox_pred': 'bbox_head.retina_reg',
}
IN_TRUNK = 'model.backbone.norm_in_trunk=True'
RELU = 'model.neck.relu_before_extra_convs=True'


# Each pair of layouts has the same families of models.
PAIRS = {'published': 'mmpretrain', 'mmpretrain': 'published', 'detectron2': 'mmdet',
         'mmdet': 'detectron2'}
# Prefix of the backbone's names.
PREFIXES = {
    'published': '',
    'mmpretrain': 'backbone.',
    'detectron2': 'backbone.bottom_up.',
    'mmdet': 'backbone.',
}
# Norms that a layout calls otherwise.
NORMS = {
    'published': {'norm4': 'norm', 'norm_4': 'norm'},
    'detectron2': {'norm4': 'norm', **{f'norm_{i}': f'norm_{i}.0' for i in range(1, 5)}},
}


class Family(NamedTuple):
    """A kind of model that two layouts have.

    Attributes:
        name (str): Its common name.
        configs (dict[type, str]): Path of its configs with each backbone, with a place for
            the size.
        out_indices (tuple[int]): Stages that the backbone returns.
        modules (dict[str, str]): Names of the modules outside the backbone in mm's layout, by
            those in the other layout.
        head (str): mm's name of the module whose outputs depend on the number of classes.
        options (tuple[str]): Options that make mm's model compute what detectron2's does.
        class_options (tuple[str]): mm's options for the number of classes.
        num_classes (int): Number of classes in the configs.
        anchor_sizes (tuple[tuple[float]]): Sides in pixels of the anchors of each level, the
            same in both layouts.
    """
    name: str
    configs: Dict[Type[ResT], str]
    out_indices: Tuple[int, ...]
    modules: Dict[str, str]
    head: str
    options: Tuple[str, ...]
    class_options: Tuple[str, ...]
    num_classes: int = 80
    anchor_sizes: Tuple[Tuple[float, ...], ...] = ()


_BOX_HEAD = 'roi_head.bbox_head.fc_cls'
_BOX_CLASSES = 'model.roi_head.bbox_head.num_classes'
_RPN_SIZES = tuple((8. * 2**i, ) for i in range(2, 7))
CLASSIFIER = Family(
    'classifier', {ResT: 'classification/rest_{}_8xb256_in1k.py',
                   ResTV2: 'classification/restv2_{}_8xb256_in1k.py'},
    (3, ), {'head': 'head.fc'}, 'head.fc', (), ('model.head.num_classes', ), 1000)
FASTER_RCNN = Family(
    'Faster R-CNN', {}, (0, 1, 2, 3), _FASTER_RCNN, _BOX_HEAD, (IN_TRUNK, ), (_BOX_CLASSES, ),
    anchor_sizes=_RPN_SIZES)
MASK_RCNN = Family(
    'Mask R-CNN', {ResT: 'mask_rcnn/rest_{}_fpn_1x_coco.py',
                   ResTV2: 'mask_rcnn/restv2_{}_fpn_3x_coco.py'}, (0, 1, 2, 3),
    {**_FASTER_RCNN, **_MASK_HEAD}, _BOX_HEAD, (IN_TRUNK, ),
    (_BOX_CLASSES, 'model.roi_head.mask_head.num_classes'), anchor_sizes=_RPN_SIZES)
RETINANET = Family(
    'RetinaNet', {ResT: 'retinanet/rest_{}_fpn_1x_coco.py'}, (1, 2, 3), _RETINANET,
    'bbox_head.retina_cls', (IN_TRUNK, RELU), ('model.bbox_head.num_classes', ),
    anchor_sizes=tuple(tuple(4. * 2**(i + j / 3) for j in range(3)) for i in range(3, 8)))


def recognise(state: Dict[str, Tensor]) -> Tuple[str, Family]:
    """Layout and family of a state dict, by its names.

    Raises:
        ValueError: The names are not those of a layout above.
    """
    def has(*starts: str) -> bool:
        return any(name.startswith(starts) for name in state)

    if has('backbone.bottom_up.'):
        if has('head.'):
            return 'detectron2', RETINANET
        if has('proposal_generator.', 'roi_heads.'):
            return 'detectron2', MASK_RCNN if has('roi_heads.mask_head.') else FASTER_RCNN
        raise UserError("the checkpoint is a backbone of detectron2's with no head: there is "
                         'no detector to convert')
    if has('backbone.') and has('decode_head.'):
        raise UserError("the checkpoint is mmseg's, whose heads are in no other layout")
    if has('backbone.') and has('rpn_head.', 'roi_head.'):
        return 'mmdet', MASK_RCNN if has('roi_head.mask_head.') else FASTER_RCNN
    if has('backbone.') and has('bbox_head.'):
        return 'mmdet', RETINANET
    if has('backbone.') and has('head.'):
        return 'mmpretrain', CLASSIFIER
    if has('stem.') and has('head.'):
        return 'published', CLASSIFIER
    raise UserError(f'the names in the checkpoint ({", ".join(list(state)[:3])}, ...) are not '
                     f'those of a classifier or detector in the layouts {sorted(PREFIXES)}')


def backbone_arch(state: Dict[str, Tensor], prefix: str) -> Tuple[Type[ResT], dict]:
    """The class and the ``arch`` of the backbone whose names start with ``prefix``.

    The weights of ResTv2 do not show ``num_heads``, so it is not in its ``arch``.

    Raises:
        ValueError: They are not those of a ResT or ResTv2 with four stages.
    """
    kind = ResTV2 if any(name.startswith(f'{prefix}patch_2.') for name in state) else ResT
    arch = dict(embed_dims=[], depths=[], num_heads=[], sr_ratios=[], mlp_ratios=[])
    for stage in (f'{prefix}stage{i}.' for i in range(1, 5)):
        norm, fc1, heads, sr = (
            state.get(f'{stage}0.{name}.weight')
            for name in ('norm1', 'mlp.fc1', 'attn.transform_conv', 'attn.sr'))
        for name, value, ndim in (('norm1', norm, 1), ('mlp.fc1', fc1, 2)):
            if value is None or value.ndim != ndim or value.numel() == 0:
                raise UserError(f'the backbone is not a {kind.__name__} of four stages: it '
                                 f'has no {stage}0.{name}.weight of {ndim} dimensions')
        arch['embed_dims'].append(len(norm))
        arch['depths'].append(
            len({name[len(stage):].split('.')[0] for name in state if name.startswith(stage)}))
        arch['num_heads'].append(1 if heads is None else heads.shape[:1].numel())
        arch['sr_ratios'].append(1 if sr is None else sr.shape[-1:].numel() - 1)
        arch['mlp_ratios'].append(len(fc1) / len(norm))
    if kind is ResTV2:
        del arch['num_heads']
        if (arch['embed_dims'][0], arch['depths']) == (128, [2, 3, 16, 3]):
            raise UserError(f'the backbone is {DETECTION_LARGE}')
    return kind, arch


def backbone_shapes(kind: Type[ResT], arch: dict, family: Family) -> Dict[str, torch.Size]:
    """Shapes of all parameters and buffers of a backbone, by its own names."""
    with torch.device('meta'):
        model = kind({'num_heads': (1, ) * 4, **arch}, out_indices=family.out_indices)
    return {name: value.shape for name, value in model.state_dict().items()}


def layout_name(name: str, layout: str) -> str:
    """The name in a layout of a backbone's parameter."""
    part, _, rest = name.partition('.')
    return f'{PREFIXES[layout]}{NORMS.get(layout, {}).get(part, part)}.{rest}'


def module_shapes(family: Family, embed_dims: List[int],
                  outputs: Dict[str, int]) -> Tuple[int, Dict[str, Tuple[int, ...]]]:
    """The number of classes, and the shape of the weight of each module outside the backbone.

    Args:
        family (Family): What the model is.
        embed_dims (list[int]): Channels of the backbone's stages.
        outputs (dict[str, int]): Number of outputs of each module, by mm's names.

    Raises:
        ValueError: The number of outputs of ``family.head`` belongs to no number of classes.
    """
    classes, odd = outputs[family.head], 0
    if family is RETINANET:
        classes, odd = divmod(classes, 9)
    elif family.head == _BOX_HEAD:
        classes -= 1  # background, which is last
    if odd or classes < 1:
        raise UserError(f'the classification layer has {outputs[family.head]} outputs, which '
                         f'is not possible in a {family.name}')
    channels = outputs.get('neck.lateral_convs.0.conv', 0)
    hidden = outputs.get('roi_head.bbox_head.shared_fcs.0', 0)
    shapes = {
        'head.fc': (classes, embed_dims[-1]),
        'rpn_head.rpn_cls': (3, channels, 1, 1),
        'rpn_head.rpn_reg': (12, channels, 1, 1),
        'roi_head.bbox_head.shared_fcs.0': (hidden, channels * 7 * 7),
        'roi_head.bbox_head.shared_fcs.1': (hidden, hidden),
        'roi_head.bbox_head.fc_cls': (classes + 1, hidden),
        'roi_head.bbox_head.fc_reg': (classes * 4, hidden),
        'roi_head.mask_head.upsample': (channels, channels, 2, 2),
        'roi_head.mask_head.conv_logits': (classes, channels, 1, 1),
        'bbox_head.retina_cls': (9 * classes, channels, 3, 3),
        'bbox_head.retina_reg': (9 * 4, channels, 3, 3),
    }
    for i, stage in enumerate(family.out_indices):
        shapes[f'neck.lateral_convs.{i}.conv'] = (channels, embed_dims[stage], 1, 1)
    if family is RETINANET:
        shapes['neck.fpn_convs.3.conv'] = (channels, embed_dims[-1], 3, 3)
    return classes, {mm: shapes.get(mm, (channels, channels, 3, 3))
                     for mm in family.modules.values()}


def arch_name(kind: Type[ResT], arch: dict) -> str:
    """The name of a published arch, such as 'small', or '' for another."""
    for name, settings in kind.arch_zoo.items():
        if all(list(settings[key]) == values for key, values in arch.items()):
            return name
    return ''


def cell_anchors(sizes: Tuple[float, ...]) -> Tensor:
    """detectron2's anchors at one place, (sizes x 3 ratios, 4), in the order of the sizes."""
    boxes: List[Tuple[float, ...]] = []
    for size in sizes:
        for ratio in (0.5, 1., 2.):  # height / width
            w, h = size / ratio**0.5, size * ratio**0.5
            boxes.append((-w / 2, -h / 2, w / 2, h / 2))
    return torch.tensor(boxes)


def swap_anchors(value: Tensor) -> Tensor:
    """RetinaNet's output channels (9 anchors x k) in the other library's order.

    A place has anchors of 3 sizes x 3 ratios. detectron2 has the ratios of the first size
    first, mmdet the sizes of the first ratio. The function is its own inverse.
    """
    by_anchor = value.reshape(3, 3, -1, *value.shape[1:])  # (outer, inner, k, ...)
    return by_anchor.transpose(0, 1).reshape(value.shape)
