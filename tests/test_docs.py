"""The documentation: its Python and its commands run, its links lead somewhere."""
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stdout, suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from mmengine import registry
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.utils import import_modules_from_strings
from torch.utils._pytree import tree_leaves

from mmrest.apis import build_model, read_config
from mmrest.engine import cpu_has_bfloat16

from . import golden, tiny_data
from .configs.step import train_and_predict
from .configs.test_zoo import NORMS
from .deploy.models import sharpen
from .torture.training import Run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'
README, CHINESE = ROOT / 'README.md', ROOT / 'README_zh-CN.md'
PAGES = [README, CHINESE, *sorted(DOCS.glob('*.md'))]
OTHER_PAGES = [ROOT / 'CONTRIBUTING.md', ROOT / 'SECURITY.md', *ROOT.glob('mm*/**/README.md')]


def blocks(page, language):
    return re.findall(rf'```{language}\n(.*?)```', page.read_text(), re.DOTALL)


def lines_of(*code):
    """Its commands, each in one line."""
    return '\n'.join(code).replace('\\\n', ' ').strip().splitlines()


def other_packages():
    """The configs of a table, with the optimizer of the page's first example."""
    head, optimizer = re.search(r'\n(custom_imports.*?\n).*?(optim_wrapper.*)',
                                blocks(DOCS / 'configs.md', 'python')[0], re.DOTALL).groups()
    for base, model in re.findall(r'^\| `(mm\w+::.*)` \| `(.*)` \|$',
                                  (DOCS / 'configs.md').read_text(), re.MULTILINE):
        yield f'_base_ = {base!r}\n{head}model = dict({model})\n{optimizer}'


# Other packages, and the shape of their images.
OTHERS = dict(mmrotate=(2, 3, 64, 64), mmpose=(2, 3, 64, 48), mmyolo=(2, 3, 64, 64),
              mmaction=(2, 3, 3, 64, 64))
CONFIGS = {re.search("_base_ = '(.*)'", code)[1]: code for code in (
    *blocks(README, 'python'), *blocks(DOCS / 'configs.md', 'python'), *other_packages())
    if code.startswith('_base_')}


@pytest.mark.parametrize('code', CONFIGS.values(), ids=CONFIGS)
def test_configs_train_word_for_word(code, tmp_path):
    package = re.search(r"_base_ = '(\w*)", code)[1]
    if package and find_spec(package) is None:
        pytest.skip(f'{package} is not installed')
    beside = Path(find_spec('mmseg').origin).parent / '.mim/configs/upernet'
    path = tmp_path / 'mine.py'
    path.write_text(code.replace("_base_ = '.", f"_base_ = '{beside}"))
    cfg = Config.fromfile(path)
    assert cfg.model.backbone.type in ('ResT', 'mmpretrain.ResT')
    assert cfg.optim_wrapper.optimizer.type == 'AdamW' or code in README.read_text()
    cfg.model.backbone.drop_path_rate = 0.
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (64, 64)  # crops of 512 x 512 take minutes
    if 'batch_augments' in cfg.model.get('data_preprocessor', {}):
        cfg.model.data_preprocessor.batch_augments = None  # pads to 1024 x 1024
    registry.init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(build_model(cfg))
    if code not in README.read_text():
        check_weight_decay(cfg.optim_wrapper, model)
    if cfg.default_scope in OTHERS:
        run_and_back(model, OTHERS[cfg.default_scope])
    else:
        train_and_predict(model, cfg.default_scope, 64)


def check_weight_decay(cfg, model):
    """Norms of the backbone have none; what is no norm and no bias has some."""
    found = build_optim_wrapper(model, cfg).optimizer.param_groups
    decay = {p: group['weight_decay'] for group in found for p in group['params']}
    norms = {p for m in model.modules() if isinstance(m, NORMS) for p in m.parameters()}
    for name, p in model.backbone.named_parameters():
        assert not decay[p] if p in norms else decay[p] or name.endswith('bias'), name


def run_and_back(model, shape):
    out = model.train()(torch.rand(shape), None, mode='tensor')
    sum(value.sum() for value in tree_leaves(out)).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


def execute(page, **scope):
    for code in blocks(page, 'python'):
        if not code.startswith('_base_') and ('timm' not in code or find_spec('timm')):
            exec(code, scope)
    return scope


def test_readme_and_installation(capsys):
    execute(README)
    assert '[(1, 128, 60, 80), (1, 256, 30, 40), (1, 512, 15, 20)]' in capsys.readouterr().out
    scope = execute(DOCS / 'install.md')
    assert type(scope['detector']).__name__ == 'MaskRCNN'
    assert sum(p.numel() for p in scope['classifier'].parameters()) == 13_679_708


def test_the_chinese_readme_has_the_same_code_and_sections():
    one, other = (path.read_text() for path in (README, CHINESE))
    assert one.count('\n#') == other.count('\n#')
    for language in ('bash', 'python', 'bibtex'):
        one, other = ([re.sub(' *# .*', '', code) for code in blocks(path, language)]
                      for path in (README, CHINESE))
        assert one == other != []


def test_training():
    scope = execute(DOCS / 'training.md')
    import_modules_from_strings(**scope['custom_imports'])
    registry.init_default_scope('mmdet')
    assert registry.OPTIM_WRAPPER_CONSTRUCTORS.get(scope['optim_wrapper']['constructor'])
    assert registry.HOOKS.build(dict(scope['default_hooks']['reseed'])).priority == 'VERY_LOW'
    assert scope['default_hooks']['checkpoint']['backend_args'] == dict(backend='whole')
    text = (DOCS / 'training.md').read_text()
    step = re.search(r"`(dict\(type='SkipUnreadable'.*?\))`", text)
    assert registry.TRANSFORMS.build(eval(step[1])).at_most == 10


def test_emsa_in_a_network_of_ones_own():
    scope = execute(DOCS / 'configs.md')
    assert scope['out'].shape == scope['image'].shape
    assert torch.isfinite(scope['image'].grad).all() and scope['image'].grad.abs().max() > 0


def test_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = golden.draw_weights('small')
    torch.save(dict(model=weights), 'rest_small.pth')
    torch.save(dict(model=weights), 'stranger.pth')
    scope = execute(DOCS / 'weights.md')
    wide, rgb = scope['adapted'].stem.conv1.weight, weights['stem.conv1.weight']
    torch.testing.assert_close(wide[:, 3], rgb[:, 0].float() * 0.75)
    assert torch.load('weights.pth')['state_dict'].keys() == weights.keys()


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """The checkout after `make demo`, with untrained models and few images."""
    folder = tmp_path_factory.mktemp('project')
    for name in ('configs', 'tools'):
        (folder / name).symlink_to(ROOT / name)
    for config in ('classification/rest_lite_digits', 'mask_rcnn/rest_lite_fpn_digits'):
        cfg = read_config(str(ROOT / f'configs/{config}.py'))
        path = folder / f'work_dirs/{Path(config).name}/iter_{cfg.max_iters}.pth'
        (path.parent / 'date/vis_data').mkdir(parents=True)
        (path.parent / 'date/vis_data/scalars.json').write_text(''.join(
            f'{{"loss": 1.0, "epoch": 1, "iter": {i}, "step": {i}}}\n' for i in (1, 2)))
        meta = dict(dataset_meta=dict(classes=tuple('0123456789'), palette=[(9, 9, 9)] * 10))
        model = sharpen(build_model(cfg))
        if hasattr(model, 'roi_head'):  # finds nothing: rounding decides between equal boxes
            torch.nn.init.constant_(model.roi_head.bbox_head.fc_cls.bias[-1:], 99.)
        torch.save(dict(meta=meta, state_dict=model.state_dict()), path)
    weights = {name: value for name, value in golden.draw_weights('small').items()
               if not name.startswith(('norm1.', 'norm2.', 'norm3.'))}
    torch.save(weights, folder / 'rest_small.pth')
    cfg = read_config(str(ROOT / 'configs/retinanet/rest_small_fpn_1x_coco.py'))
    torch.save(build_model(cfg).state_dict(), folder / 'mmdet.pth')
    run('python tools/dataset_converters/digits_to_coco.py data/digits '
        '--num-train 4 --num-val 2 --renders 1', folder)
    return folder


def run(command, cwd):
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    done = subprocess.run(['bash', '-ec', command], cwd=cwd, env=dict(os.environ, PATH=path),
                          text=True, capture_output=True)
    assert done.returncode == 0, f'{command}\n{done.stderr[-2000:]}'


*LOOK, FIND, EVALUATE = blocks(DOCS / 'evaluate.md', 'bash')
MODEL, _ = lines_of(LOOK[0])
WRITE, *EVALUATE = lines_of(EVALUATE)
WRITTEN = dict(  # what has to be there afterwards
    analyze_results='best_and_worst/*/*.jpg', browse_dataset='browsed/*.jpg',
    coco_error_analysis='errors/bbox/bbox-*.png', test_robustness='robust_results.pkl',
    plot_curve='curves.png', confusion_matrix='confusion.png', vis_scheduler='schedule.png',
    eval='found.pdf', predict='sahi/*/*/*')


@pytest.mark.slow
def test_commands_for_a_trained_model_run(project):
    needs = {'--tile': 'sahi', 'report.py': 'hotcoco'}
    deploy = blocks(DOCS / 'deploy.md', 'bash')[0]  # the others need a trained model, or serve
    for command in (*LOOK, *lines_of(deploy), *lines_of(*blocks(DOCS / 'errors.md', 'bash'))):
        if all(find_spec(package) for word, package in needs.items() if word in command):
            run(f'{MODEL}\n{command}', project)
    assert {'attention.png', 'features.png', 'cam.png', 'report.json', 'found_onnx'} <= {
        path.name for path in project.iterdir()}


@pytest.fixture(scope='module')
def predicted(project, tmp_path_factory):
    """The same with a detector that finds something, and its predictions."""
    folder = tmp_path_factory.mktemp('predicted')
    shutil.copytree(project, folder, symlinks=True, dirs_exist_ok=True)
    path = folder / 'work_dirs/rest_lite_fpn_digits/iter_900.pth'
    checkpoint = torch.load(path)
    checkpoint['state_dict']['roi_head.bbox_head.fc_cls.bias'][-1] = 0
    torch.save(checkpoint, path)
    run(f'{MODEL}\n{WRITE}', folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('command', EVALUATE, ids=lambda command: ' '.join(command.split()[:3]))
def test_scripts_of_others_run(command, predicted, project):
    if package := dict(coco='hotcoco', sahi='sahi').get(command.split()[0]):
        pytest.importorskip(package)
    folder = project if package == 'sahi' else predicted  # it refuses some untrained masks
    run(f'{MODEL}\n{FIND}\n{command}', folder)
    for name, files in WRITTEN.items():
        if re.search(rf'\b{name} ', command):
            assert list(folder.glob(files)), f'{command}: no {files}'


@pytest.mark.slow
def test_commands_for_weights_run(project):
    convert, = blocks(DOCS / 'weights.md', 'bash')
    last = lines_of(convert)[-1]  # the reverse makes the published detector
    last = last.replace('retinanet.pth', 'mmdet.pth').replace('d2.pth', 'model_final.pth')
    run(f'{last}\n{convert}', project)
    back = torch.load(project / 'back.pth')
    assert back.get('model', back).keys() == torch.load(project / 'rest_small.pth').keys()


@pytest.fixture(scope='module')
def own_data(tmp_path_factory):
    """A folder in which the page's first command has written pets.py, made short."""
    folder = tmp_path_factory.mktemp('own')
    (folder / 'tools').symlink_to(ROOT / 'tools')
    for name, seed in (('train', 0), ('val', 100)):
        tiny_data.write_coco(folder / 'pets' / name, seed)
        tiny_data.write_classes(folder / 'photos' / name, seed)
        tiny_data.write_segments(folder / 'scenes' / name, seed)
    torch.save(golden.draw_weights('small'), folder / 'rest_small.pth')
    tiny_data.write_voc(folder / 'VOC2007')
    tiny_data.write_yolo(folder / 'signs')
    tiny_data.write_labelme(folder / 'leaves')
    for command in own_data_commands('tools/dataset_converters/'):
        run_script(command, folder)
    run_script(own_data_commands('--out pets.py')[0], folder)
    config = (folder / 'pets.py').read_text()
    assert 'max_iters = 3000' in config
    config = config.replace('max_iters = 3000', 'max_iters = 2')
    (folder / 'pets.py').write_text(config.replace('batch_size = 4', 'batch_size = 1'))
    return folder


def own_data_commands(words):
    return [line for line in lines_of(*blocks(DOCS / 'own_data.md', 'bash')) if words in line]


def run_script(command, folder):
    """A command `python SCRIPT ...`, with the checkpoint that it means by a pattern."""
    _, script, *words = shlex.split(command)
    args = [path for word in words for path in (
        sorted(map(str, folder.glob(word))) if '*' in word else [word])]
    process = Run(folder, *args, script=ROOT / script)
    assert process.wait(300) == 0, f'{command}\n{process.text()[-2000:]}'


@pytest.mark.slow
def test_own_data_from_check_to_pictures(own_data):
    for command in lines_of(blocks(DOCS / 'own_data.md', 'bash')[0])[1:]:
        run_script(command, own_data)
    assert len(list((own_data / 'found/pictures').iterdir())) == 4
    for command in own_data_commands('--task')[1:]:
        run_script(command, own_data)
    assert {'photos.py', 'scenes.py'} <= {path.name for path in own_data.iterdir()}
    assert Counter(path.parent.name for path in own_data.glob('*/*.json')) == dict(
        cars=3, signs_coco=2, leaves=4, leaves_coco=2, tiles=1)


@pytest.mark.slow
def test_cells_from_photographs_to_onnx(tmp_path):
    """The page's commands as they stand, on four drawn photographs in the same folders."""
    (tmp_path / 'tools').symlink_to(ROOT / 'tools')
    photos = tiny_data.write_voc(tmp_path / 'bccd/BCCD') / 'JPEGImages'
    for i in range(4):
        (photos / f'BloodImage_0000{i}.jpg').symlink_to(f'{i}.jpg')
    clone, *commands = lines_of(*blocks(DOCS / 'cells.md', 'bash'))
    assert clone.startswith('git clone --depth 1 https://github.com/Shenggan/BCCD_Dataset bccd')
    for command in commands:
        amp = ' --amp' if cpu_has_bfloat16() else ''
        run(command.replace(' --amp', amp).replace('--iters 900', '--iters 2'), tmp_path)
    assert len(list((tmp_path / 'found_onnx/predictions').iterdir())) == 4


@pytest.mark.slow
def test_own_data_by_the_scripts_of_others(own_data):
    for command in own_data_commands('train mmrest') + own_data_commands('.mim/tools'):
        run(command, own_data)


@pytest.mark.parametrize('package, name, files', [
    ('tensorboard', 'Tensorboard', '**/*tfevents*'), ('wandb', 'Wandb', '**/*.wandb'),
    ('mlflow', 'MLflow', 'mlflow.db')])
def test_curves_elsewhere(package, name, files, own_data, monkeypatch):
    pytest.importorskip(package)
    monkeypatch.setenv('WANDB_MODE', 'offline')
    command, = own_data_commands(f'={name}Vis')
    run(f'{command} --work-dir {package}', own_data)
    assert list(own_data.glob(files))


@lru_cache
def help_of(script):
    path = [str((ROOT / script).parent), *sys.path]
    with patch('sys.argv', [script, '--help']), patch('sys.path', path), redirect_stdout(
            io.StringIO()) as out, suppress(SystemExit):
        runpy.run_path(str(ROOT / script), run_name='__main__')
    return out.getvalue()


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_name_what_there_is(page):
    """Make targets, scripts, configs, and the options of our scripts."""
    targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    for command in lines_of(*blocks(page, 'bash')):
        words = shlex.split(command, comments=True)
        if words[:1] == ['make']:
            assert words[1] in targets, command
        for i, word in enumerate(words):
            if path := re.match('(config=)?((configs|tools|benchmarks)/.*)', word):
                assert (ROOT / path[2]).exists(), f'{command}: no {word}'
            if word.startswith('tools/'):
                for option in (word for word in words[i:] if word.startswith('--')):
                    assert option in help_of(words[i]), f'{command}: there is no {option}'


@pytest.mark.parametrize('page', [*PAGES, *ROOT.glob('configs/*/README.md'), *OTHER_PAGES],
                         ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
        if '://' in target:
            continue
        path, _, anchor = target.partition('#')
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), f'{page.name}: {target}'
        if anchor:
            heads = re.findall(r'^#+ (.+)', to.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r'[^\w\- ]', '', h.lower()).replace(' ', '-')
                              for h in heads}, f'{page.name}: {target}'


def test_every_page_is_built_without_a_warning(tmp_path):
    pytest.importorskip('sphinx')
    done = subprocess.run(
        [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-b', 'html', DOCS,
         tmp_path / 'html'], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    built = {path.stem for path in (tmp_path / 'html').glob('*.html')}
    assert {page.stem for page in DOCS.glob('*.md')} <= built
    api = (tmp_path / 'html/api.html').read_text()
    assert 'id="mmrest.ResT"' in api and 'id="mmrest.engine.ReseedHook"' in api
    assert 'Stochastic depth of the last block' in api


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    nbclient, nbformat = map(pytest.importorskip, ('nbclient', 'nbformat'))
    notebook = nbformat.read(DOCS / 'tour.ipynb', as_version=4)
    assert not any(cell.get('outputs') for cell in notebook.cells)  # kept clean
    nbclient.NotebookClient(
        notebook, timeout=180, resources=dict(metadata=dict(path=str(ROOT)))).execute()
    text = str([cell.get('outputs') for cell in notebook.cells])
    assert 'largest difference' in text and 'accuracy' in text
