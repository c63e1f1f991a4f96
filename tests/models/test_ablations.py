"""The ablations of tables 5, 6 and 7, each held against its definition."""
import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.testing import assert_close

from benchmarks.published import Attention
from mmrest import ResT
from mmrest.models import ResTAblation

from .models import randomize, tiny


def test_by_default_it_is_rest():
    models = [tiny(cls) for cls in (ResT, ResTAblation)]
    assert_close(*(model.state_dict() for model in models), rtol=0, atol=0)
    image = torch.randn(1, 3, 40, 56)
    assert_close(*(model.eval()(image) for model in models), rtol=0, atol=0)
    assert MODELS.get('ResTAblation') is ResTAblation and isinstance(models[1], ResT)


def test_rest_itself_names_the_class_that_has_the_argument():
    for name in ('stem', 'position', 'attention', 'img_size'):
        with pytest.raises(TypeError, match=f'ResT has no argument {name}; .* of ResTAblation'):
            ResT(**{name: 'pvt'})


@pytest.mark.parametrize('kwargs, words', [
    (dict(stem='vit'), "stem='vit' must be one of ['pvt', 'resnet', 'rest']"),
    (dict(position='ape'), "position='ape' must be one of ['gl', 'le', 'pa']"),
    (dict(attention='mha'), "attention='mha' must be one of"),
])
def test_bad_arguments_are_named(kwargs, words):
    with pytest.raises(ValueError) as raised:
        tiny(ResTAblation, **kwargs)
    assert words in str(raised.value)


def test_resnet_and_pvt_stems_are_theirs():
    image = torch.randn(2, 3, 37, 50, dtype=torch.double)
    stem = randomize(tiny(ResTAblation, stem='resnet')).double().eval().stem
    want = nn.functional.conv2d(image, stem.conv.weight, stride=2, padding=3)
    want = nn.functional.max_pool2d(stem.norm(want).relu(), 3, 2, 1)
    assert_close(stem(image), want * stem.pos.pa_conv(want).sigmoid())
    stem = randomize(tiny(ResTAblation, stem='pvt')).double().eval().stem
    patches = image[:, :, :36, :48].reshape(2, 3, 9, 4, 12, 4)
    want = torch.einsum('bcyixj,ocij->boyx', patches, stem.conv.weight)
    want = want + stem.conv.bias[:, None, None]
    assert_close(stem(image), want * stem.pos.pa_conv(want).sigmoid())


def test_positions_are_equations_6_to_8():
    image = torch.randn(1, 3, 40, 56, dtype=torch.double)
    for kind in ('pa', 'gl', 'le'):
        model = randomize(tiny(ResTAblation, position=kind, img_size=(40, 56))).double().eval()
        for embed in (model.stem, model.patch_embed_2):
            pos, seen = embed.pos, []
            handle = pos.register_forward_hook(
                lambda m, x, y, seen=seen: seen.append((x[0], y)))
            model(image)
            handle.remove()
            (x, y), = seen
            if kind == 'pa':
                want = x / (1 + torch.exp(-pos.pa_conv(x)))
            elif kind == 'gl':
                want = x + pos.gl_conv(x)
            else:
                want = x + pos.theta
            assert_close(y, want)


@pytest.mark.parametrize('stem', ['rest', 'resnet', 'pvt'])
def test_learned_position_takes_its_image_size_alone(stem):
    model = tiny(ResTAblation, position='le', img_size=(45, 66), stem=stem)
    model.eval()(torch.randn(2, 3, 45, 66))
    for hw in ((45, 70), (1, 1)):
        with pytest.raises(ValueError, match='img_size must be the size of every image'):
            (model.stem.pos if stem == 'pvt' else model)(torch.zeros(1, 3, *hw))
    assert tiny(ResTAblation, position='le').stem.pos.theta.shape == (1, 8, 56, 56)
    with pytest.raises(ValueError, match=r'img_size=\(3, 45, 66\) must be one number, or hei'):
        tiny(ResTAblation, position='le', img_size=(3, 45, 66))


@pytest.mark.parametrize('attention, options', [
    ('emsa', {}),
    ('emsa_no_norm', dict(normalize=False)),
    ('emsa_plain', dict(mix_heads=False, normalize=False)),
    ('msa', dict(mix_heads=False, normalize=False)),
])
def test_attentions_leave_out_what_they_say(attention, options):
    model = randomize(tiny(ResTAblation, attention=attention)).double()
    module = model.stage2[0].attn
    port = Attention(16, 2, 1, **options).double()
    port.load_state_dict(module.state_dict())
    tokens = torch.randn(2, 35, 16, dtype=torch.double)
    assert_close(module(tokens, (5, 7)), port(tokens, 5, 7))
    assert hasattr(model.stage1[0].attn, 'sr') == (attention != 'msa')
