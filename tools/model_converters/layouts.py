"""The names of ResT's and ResTv2's models in four layouts, and the tables between them.

    published    the paper's ImageNet code     stem.*, stage1.*, ..., norm.*, head.*
    mmpretrain   configs/classification        backbone.*, head.fc.*
    detectron2   the paper's detection code    backbone.bottom_up.*, backbone.fpn_*, ...
    mmdet        configs/mask_rcnn, retinanet  backbone.*, neck.*, rpn_head.*, ...

Sources: github.com/wofmanaf/ResT (models/rest.py, object_detection/), detectron2's modeling/
and mmdet's models/.
"""
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, Tuple, Type

from mmengine.config import Config
from torch import Tensor

from mmrest import ResT, ResTV2
from mmrest.apis import read_config
from mmrest.errors import MissingPackageError, UserError
from mmrest.models.checkpoint import DETECTION_LARGE

CONFIGS = Path(__file__).parents[2] / 'configs'
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
    """A kind of model that two layouts have."""
    name: str
    configs: Dict[Type[ResT], str]  # paths in configs/, with a place for the size
    modules: Dict[str, str]  # outside the backbone: mm's names by those in the other layout
    head: str  # mm's name of the module that classifies
    outputs: Tuple[int, int] = (1, 0)  # of the head, for a class and for the background
    options: Tuple[str, ...] = ()  # with which mm's model computes what detectron2's does


CLASSIFIER = Family(
    'classifier', {ResT: 'classification/rest_{}_8xb256_in1k.py',
                   ResTV2: 'classification/restv2_{}_8xb256_in1k.py'},
    {'head': 'head.fc'}, 'head.fc')
FASTER_RCNN = Family(
    'Faster R-CNN', {ResT: 'faster_rcnn/rest_{}_fpn_1x_coco.py'}, _FASTER_RCNN,
    'roi_head.bbox_head.fc_cls', (1, 1), (IN_TRUNK, ))
MASK_RCNN = FASTER_RCNN._replace(
    name='Mask R-CNN', modules={**_FASTER_RCNN, **_MASK_HEAD},
    configs={ResT: 'mask_rcnn/rest_{}_fpn_1x_coco.py',
             ResTV2: 'mask_rcnn/restv2_{}_fpn_3x_coco.py'})
RETINANET = Family(
    'RetinaNet', {ResT: 'retinanet/rest_{}_fpn_1x_coco.py'}, _RETINANET,
    'bbox_head.retina_cls', (9, 0), (IN_TRUNK, RELU))


class Model(NamedTuple):
    """What a state dict holds."""
    layout: str
    family: Family
    kind: Type[ResT]
    arch: Dict[str, list]  # without num_heads for ResTv2, whose weights do not show it
    size: str  # the name of a published arch, such as 'small', or ''
    config: str  # path in configs/ of the config with this backbone, or ''
    options: List[str]  # the family's, as far as this backbone needs them


def recognise(state: Dict[str, Tensor]) -> Model:
    """What a state dict holds, by its names and its backbone's shapes.

    Raises:
        UserError: It is not a model in one of the layouts, or its backbone is not a ResT or
            ResTv2 of four stages.
    """
    layout, family = _recognise_names(state)
    kind, arch = _backbone_arch(state, PREFIXES[layout])
    size = next((name for name, settings in kind.arch_zoo.items() if all(
        list(settings[key]) == values for key, values in arch.items())), '')
    config = family.configs.get(kind, '').format(size)
    return Model(layout, family, kind, arch, size,
                 config if size and (CONFIGS / config).is_file() else '',
                 [o for o in family.options if o != IN_TRUNK or kind is ResT])


def _recognise_names(state: Dict[str, Tensor]) -> Tuple[str, Family]:
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


def _backbone_arch(state: Dict[str, Tensor], prefix: str) -> Tuple[Type[ResT], dict]:
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


def name_pairs(backbone: Iterable[str], model: Model) -> Dict[str, str]:
    """The new name of each old one, where ``backbone`` has those in the backbone."""
    to_mm = not model.layout.startswith('mm')
    other = model.layout if to_mm else PAIRS[model.layout]
    pairs = []
    for name in backbone:
        part, _, rest = name.partition('.')
        part = NORMS[other].get(part, part)
        pairs.append((f'{PREFIXES[other]}{part}.{rest}', f'backbone.{name}'))
    pairs += [(f'{name}.{kind}', f'{mm}.{kind}') for name, mm in model.family.modules.items()
              for kind in ('weight', 'bias')]
    return dict(pair if to_mm else pair[::-1] for pair in pairs)


def fit_config(model: Model, state: Dict[str, Tensor]) -> Tuple[Config, int, List[str]]:
    """A config with a state dict's backbone, and its classes, channels and features.

    Returns:
        tuple[Config, int, list[str]]: The config, its number of classes, and the options that
        set it where the config in the repository has another.

    Raises:
        UserError: The number of outputs of ``family.head`` belongs to no number of classes,
            or the package of the config is not installed.
    """
    family, dims = model.family, model.arch['embed_dims']
    modules = {f'{other}.weight': f'{mm}.weight' for other, mm in family.modules.items()}
    outputs = {modules.get(name, name): value.shape[:1].numel()
               for name, value in state.items()}
    each, background = family.outputs
    found = outputs.get(f'{family.head}.weight', each + background)
    classes, odd = divmod(found - background, each)
    if odd or classes < 1:
        raise UserError(f'the classification layer has {found} outputs, which is not possible '
                        f'in a {family.name}')
    channels = outputs.get('neck.lateral_convs.0.conv.weight', dims[-1])
    sizes = dict(num_classes=classes, in_channels=channels, out_channels=channels,
                 feat_channels=channels, conv_out_channels=channels,
                 fc_out_channels=outputs.get('roi_head.bbox_head.shared_fcs.0.weight'))
    try:
        cfg = read_config(CONFIGS / (model.config or family.configs[ResT].format('small')))
    except ModuleNotFoundError as error:
        raise MissingPackageError(f'shapes are compared with a config: {error}') from error
    changed = list(_resize(cfg.model, sizes, 'model'))
    backbone = cfg.model.backbone
    backbone.update(type=model.kind.__name__, arch={'num_heads': (1, ) * 4, **model.arch})
    if family is not CLASSIFIER:
        cfg.model.neck.in_channels = [dims[i] for i in backbone.get('out_indices', range(4))]
    cfg.model.train_cfg = None  # of which mmpretrain says something
    return cfg, classes, [option for option in changed if '.num_classes=' in option]


def _resize(node: dict, sizes: Dict[str, int], path: str) -> Iterator[str]:
    """Change numbers in a config, and yield the changes as options."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _resize(value, sizes, f'{path}.{key}')
        elif isinstance(value, int) and (sizes.get(key) or value) != value:
            node[key] = sizes[key]
            yield f'{path}.{key}={sizes[key]}'


def swap_anchors(value: Tensor) -> Tensor:
    """RetinaNet's output channels (9 anchors x k) in the other library's order.

    A place has anchors of 3 sizes x 3 ratios. detectron2 has the ratios of the first size
    first, mmdet the sizes of the first ratio. The function is its own inverse.
    """
    by_anchor = value.reshape(3, 3, -1, *value.shape[1:])  # (outer, inner, k, ...)
    return by_anchor.transpose(0, 1).reshape(value.shape)
