"""What the export knows of mm's models, and so what it refuses.

An option that changes what mm predicts, and that the exported file would not follow, is refused
before anything is exported. So is one that nobody has heard of. :data:`KNOWN` and :data:`STEPS`
are all there is to know; docs/deploy.md has them as the table that :func:`table` makes.
"""
from numbers import Number
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Tuple

from torch import nn

from ..errors import UserError
from ..models import ResT


class Rule(NamedTuple):
    """The values of an option that are known. ``default`` is what mm takes without one."""
    says: str
    allows: Callable[[Any], bool]
    default: Any = None


def only(*values: Any) -> Rule:
    """One of these; the first is mm's default."""
    says = ', '.join('none' if value is None else f'`{value!r}`' for value in values)
    return Rule(says, lambda value: value in values, values[0])


def at_least(least: float, default: Any = None) -> Rule:
    return Rule(f'{least} or more',
                lambda value: isinstance(value, Number) and value >= least, default)


ANY = Rule('any', lambda value: True)
# Pure-Python configs name mmcv's function itself.
NMS = dict(
    type=Rule("`'nms'`", lambda kind: 'nms' in (kind, getattr(kind, '__name__', None)), 'nms'),
    iou_threshold=at_least(0), class_agnostic=only(False, True), split_thr=ANY,
    offset=only(0), score_threshold=only(0), max_num=only(-1))
DENSE_TEST = dict(nms_pre=at_least(1), score_thr=at_least(0, 0), min_bbox_size=at_least(-1, -1),
                  nms=NMS, max_per_img=at_least(1))
RPN_TEST = dict(nms_pre=at_least(1), min_bbox_size=at_least(-1, -1), nms=NMS,
                max_per_img=at_least(1))
RCNN_TEST = dict(score_thr=at_least(0), nms=NMS, max_per_img=at_least(1),
                 mask_thr_binary=at_least(0, 0.5))
NO_OWN_ACTIVATION = Rule('none with an activation of its own', lambda loss: not getattr(
    loss, 'custom_cls_channels', False))

# What makes a classifier's scores of its logits.
ACTIVATIONS = dict(
    ClsHead='softmax', LinearClsHead='softmax', StackedLinearClsHead='softmax',
    ArcFaceClsHead='softmax', MultiLabelClsHead='sigmoid', MultiLabelLinearClsHead='sigmoid',
    CSRAClsHead='sigmoid')
SEGMENTATION_HEADS = ('ASPPHead', 'DepthwiseSeparableASPPHead', 'FCNHead', 'FPNHead', 'PSPHead',
                      'SegformerHead', 'UPerHead')

DETECTOR = {'data_preprocessor': ('DetDataPreprocessor', )}
DENSE = {**DETECTOR, 'test_cfg': DENSE_TEST}
TWO_STAGE = {**DETECTOR, 'rpn_head': ('RPNHead', ),
             'test_cfg': dict(rpn=RPN_TEST, rcnn=RCNN_TEST)}
ANCHOR_HEAD = {'bbox_coder': ('DeltaXYWHBBoxCoder', ), 'prior_generator': ('AnchorGenerator', ),
               'loss_cls': NO_OWN_ACTIVATION}
POINT_HEAD = {**ANCHOR_HEAD, 'bbox_coder': ('DistancePointBBoxCoder', ),
              'prior_generator': ('MlvlPointGenerator', )}
BBOX_HEAD = {'bbox_coder': ('DeltaXYWHBBoxCoder', ), 'loss_cls': NO_OWN_ACTIVATION,
             'with_cls': only(True), 'with_reg': only(True), 'predict_box_type': only('hbox')}
BBOX_HEADS = ('BBoxHead', 'ConvFCBBoxHead', 'Shared2FCBBoxHead', 'Shared4Conv1FCBBoxHead')

ROI_HEAD = {
    'bbox_roi_extractor': ('SingleRoIExtractor', ), 'bbox_head': BBOX_HEADS,
    'mask_roi_extractor': ('SingleRoIExtractor', None), 'mask_head': ('FCNMaskHead', None),
    'with_shared_head': only(False)}

# By class: its parts, of the classes in a tuple, and its options. A class without an entry has
# nothing to know.
KNOWN: Dict[str, dict] = {
    **dict.fromkeys(('ResT', 'ResTV2', 'ResTAblation'), {'in_channels': only(3)}),
    'ImageClassifier': {
        'data_preprocessor': ('ClsDataPreprocessor', ), 'head': tuple(ACTIVATIONS)},
    'EncoderDecoder': {
        'data_preprocessor': ('SegDataPreProcessor', ), 'decode_head': SEGMENTATION_HEADS,
        'out_channels': at_least(2),
        'test_cfg': dict(mode=only('whole', 'slide'), crop_size=ANY, stride=ANY)},
    'SegDataPreProcessor': {'test_cfg': dict(size_divisor=ANY, size=only(None))},
    'RetinaNet': {**DENSE, 'bbox_head': ('RetinaHead', )},
    'FCOS': {**DENSE, 'bbox_head': ('FCOSHead', )},
    'ATSS': {**DENSE, 'bbox_head': ('ATSSHead', )},
    'GFL': {**DENSE, 'bbox_head': ('GFLHead', )},
    'RTMDet': {**DENSE, 'bbox_head': ('RTMDetHead', 'RTMDetSepBNHead')},
    'FasterRCNN': {**TWO_STAGE, 'roi_head': ('StandardRoIHead', )},
    'MaskRCNN': {**TWO_STAGE, 'roi_head': ('StandardRoIHead', )},
    'CascadeRCNN': {**TWO_STAGE, 'roi_head': ('CascadeRoIHead', )},
    **dict.fromkeys(('RetinaHead', 'ATSSHead', 'RPNHead'), ANCHOR_HEAD),
    **dict.fromkeys(('FCOSHead', 'RTMDetHead', 'RTMDetSepBNHead'), POINT_HEAD),
    'GFLHead': {**ANCHOR_HEAD, 'bbox_coder': ('DistancePointBBoxCoder', ),
                'use_sigmoid_cls': only(True)},
    **dict.fromkeys(('StandardRoIHead', 'CascadeRoIHead'), ROI_HEAD),
    **dict.fromkeys(BBOX_HEADS, BBOX_HEAD),
    'SingleRoIExtractor': {'roi_layers': ('RoIAlign', )},
    'RoIAlign': {'pool_mode': only('avg')},
}

SIZE = Rule('two numbers', lambda size: isinstance(size, (tuple, list)) and len(size) == 2)
SLIDE = dict(mode=only('slide'), crop_size=SIZE, stride=SIZE)  # of EncoderDecoder.test_cfg
RESIZE = dict(scale=ANY, backend=only('cv2', 'pillow'), clip_object_border=ANY,
              interpolation=only('bilinear', 'bicubic', 'nearest'))
# By step of the test pipeline: its options. What loads and packs an image may have any.
STEPS: Dict[str, Optional[dict]] = {
    'LoadImageFromFile': None, 'LoadAnnotations': None,
    'PackInputs': None, 'PackDetInputs': None, 'PackSegInputs': None,
    'Resize': dict(**RESIZE, keep_ratio=only(False, True), scale_factor=only(None)),
    'ResizeEdge': dict(**RESIZE, edge=only('short')),
    'Pad': dict(size=SIZE, pad_val=ANY, size_divisor=only(None), pad_to_square=only(False),
                padding_mode=only('constant')),
    'CenterCrop': dict(crop_size=ANY, efficientnet_style=only(False), crop_padding=ANY,
                       interpolation=ANY, backend=ANY, auto_pad=only(False), pad_cfg=ANY,
                       clip_object_border=ANY),
}


def check(model: nn.Module) -> None:
    """Refuse a model of mm with a part or an option that is not known.

    Raises:
        UserError: It names the part or the option, and its value.
    """
    check_parts(model, '')
    for name, module in model.named_modules():
        kind = type(module)
        if isinstance(module, ResT):
            check_parts(module, name and f'{name}.')
        if kind.__module__.startswith('mmcv.ops') and kind.__name__ != 'RoIAlign':
            raise UserError(f'{name}: {kind.__name__} of mmcv.ops cannot be exported')


def check_slide(model: nn.Module) -> None:
    """Refuse what only mode 'slide' of a segmenter cannot have.

    Raises:
        UserError: It names the option, and its value.
    """
    check_options(model.test_cfg, SLIDE, 'test_cfg')
    crop, stride = model.test_cfg['crop_size'], model.test_cfg['stride']
    if not all(0 < s <= c for s, c in zip(stride, crop)):
        raise UserError(f'test_cfg.stride={tuple(stride)} cannot be exported; known: 1 to '
                        f'crop_size, {tuple(crop)}')
    divisor = (model.data_preprocessor.test_cfg or {}).get('size_divisor')
    if (divisor or 1) > 1:  # mm pads before it crops
        raise UserError(f'data_preprocessor.test_cfg.size_divisor={divisor} cannot be exported '
                        "with test_cfg.mode='slide'; known: none")


def check_parts(module: nn.Module, path: str) -> None:
    for part, known in KNOWN.get(type(module).__name__, {}).items():
        value, where = getattr(module, part, None), f'{path}{part}'
        if isinstance(known, Rule):
            check_value(value, known, where)
        elif isinstance(known, dict):
            check_options(value or {}, known, where)
        else:
            several = isinstance(value, nn.ModuleList)
            for i, one in enumerate(value if several else [value]):
                name = None if one is None else type(one).__name__
                place = f'{where}[{i}]' if several else where
                if name not in known:
                    raise UserError(f'{place}.type={name!r} cannot be exported, only '
                                    f'{", ".join(filter(None, known))}')
                check_parts(one, f'{place}.')


def check_value(value: Any, known: Rule, where: str) -> None:
    value = known.default if value is None else value
    if not known.allows(value):
        shown = type(value).__name__ if isinstance(value, nn.Module) else value
        raise UserError(f'{where}={shown!r} cannot be exported; known: '
                        f'{known.says.replace("`", "")}')


def check_options(options: Optional[dict], known: dict, where: str) -> None:
    """Refuse a dict that has an option or a value that is not known."""
    if not isinstance(options, dict):
        raise UserError(f'{where}={options!r} cannot be exported, it must be a dict')
    for name in options:
        if name not in known:
            raise UserError(f'{where}.{name}={options[name]!r} cannot be exported, because '
                            f'that option is not known; known: {", ".join(known)}')
    for name, rule in known.items():
        if isinstance(rule, dict):
            check_options(options.get(name), rule, f'{where}.{name}')
        else:
            check_value(options.get(name), rule, f'{where}.{name}')


def table() -> str:
    """All that is known, for the docs: a table in Markdown."""
    rows: Dict[str, list] = {}
    for kind, parts in {**KNOWN, **STEPS}.items():
        for owner, says in _rows(kind, parts or {'all options': ANY}):
            owners = rows.setdefault(says, [])
            if owner not in owners:
                owners.append(owner)
    lines = [f'| {", ".join(owners)} | {says} |' for says, owners in rows.items()]
    return '\n'.join(['| of | known |', '|---|---|', *lines])


def _rows(owner: str, parts: dict) -> Iterator[Tuple[str, str]]:
    """Of a class, or of a dict in its config: its name, and what is known of it."""
    says = []
    for name, known in parts.items():
        if isinstance(known, dict):
            yield from _rows(f'{owner}.{name}' if name == 'test_cfg' else name, known)
        elif isinstance(known, Rule):
            says.append(f'`{name}`: {known.says}')
        else:
            kinds = ('none' if kind is None else f'`{kind}`' for kind in known)
            says.append(f'`{name}`: {", ".join(kinds)}')
    if says:
        yield f'`{owner}`', '; '.join(says)
