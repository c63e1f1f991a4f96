"""The documentation: its Python runs, its commands run, its links lead somewhere."""
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch

from mmrest.apis import build_model, read_config

from . import golden

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'
PAGES = [ROOT / 'README.md', *sorted(DOCS.glob('*.md'))]
# Commands that take hours, hardware, data or a network: looked at, not run. What they call is
# run by other tests and by CI.
STATIC = ('mim ', 'pip ', 'tools/dist_', 'tools/slurm_', 'make ')


def blocks(page, language):
    return re.findall(rf'```{language}\n(.*?)```', page.read_text(), re.DOTALL)


def commands(page):
    for block in blocks(page, 'bash'):
        for line in block.replace('\\\n', ' ').splitlines():
            if line.strip() and not line.startswith('#'):
                yield line


def test_emsa_in_a_network_of_ones_own():
    scope = {}
    code, = blocks(DOCS / 'own_network.md', 'python')
    exec(code, scope)
    assert scope['out'].shape == scope['image'].shape
    assert torch.isfinite(scope['image'].grad).all() and scope['image'].grad.abs().max() > 0


def test_start(capsys):
    code, = blocks(DOCS / 'start.md', 'python')
    exec(code, {})
    assert '[(1, 128, 60, 80), (1, 256, 30, 40), (1, 512, 15, 20)]' in capsys.readouterr().out


def test_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = golden.draw_weights('small')
    torch.save(dict(model=weights), 'rest_small.pth')
    torch.save(dict(model=weights), 'stranger.pth')
    for code in blocks(DOCS / 'weights.md', 'python'):
        exec(code, {})
    wide = torch.load('rest_small_4ch.pth')['stem.conv1.weight']
    torch.testing.assert_close(wide[:, 3], weights['stem.conv1.weight'].mean(1))
    assert torch.load('weights.pth')['state_dict'].keys() == weights.keys()


def test_own_data_is_a_config_that_builds(tmp_path):
    from mmengine.registry import MODELS
    code, = blocks(DOCS / 'own_data.md', 'python')
    (tmp_path / 'pets.py').write_text(code)
    cfg = read_config(str(tmp_path / 'pets.py'))
    model = MODELS.build(cfg.model)
    assert model.roi_head.bbox_head.fc_cls.out_features == 3
    assert model.roi_head.mask_head.conv_logits.out_channels == 2
    assert cfg.test_dataloader.dataset.ann_file == 'val.json'
    assert cfg.test_evaluator.ann_file == 'data/pets/val.json'


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """The checkout as `make demo` leaves it, with untrained models and few images."""
    folder = tmp_path_factory.mktemp('project')
    for name in ('configs', 'tools', 'benchmarks', 'docs', 'mmrest'):
        (folder / name).symlink_to(ROOT / name)
    for config in ('classification/rest_lite_digits', 'mask_rcnn/rest_lite_fpn_digits'):
        cfg = read_config(str(ROOT / f'configs/{config}.py'))
        cfg.model.backbone.pop('init_cfg', None)
        path = folder / f'work_dirs/{Path(config).name}/iter_1100.pth'
        path.parent.mkdir(parents=True)
        meta = dict(dataset_meta=dict(classes=tuple('0123456789'), palette=[(9, 9, 9)] * 10))
        torch.save(dict(meta=meta, state_dict=build_model(cfg).state_dict()), path)
    subprocess.run(
        [sys.executable, ROOT / 'tools/dataset_converters/digits_to_coco.py',
         folder / 'data/digits', '--num-train', '4', '--num-val', '2', '--renders', '1'],
        check=True)
    return folder


def run(command, cwd):
    binaries = Path(sys.executable).parent
    env = dict(os.environ, PATH=f'{binaries}:{os.environ["PATH"]}')
    done = subprocess.run(
        ['bash', '-ec', command], cwd=cwd, env=env, text=True, capture_output=True)
    assert done.returncode == 0, f'{command}\n{done.stderr[-2000:]}'


@pytest.mark.skipif(not hasattr(getattr(torch.export, 'Dim', None), 'DYNAMIC'),
                    reason='torch before 2.6 cannot export dynamic sizes')
def test_commands_for_a_trained_model_run(project):
    for command in commands(DOCS / 'tools.md'):
        run(command, project)
    written = {path.name for path in project.iterdir() if path.is_file()}
    assert {'cam.png', 'attention.png', 'features.png', 'classifier.onnx'} <= written
    assert len(list((project / 'found/pictures').iterdir())) == 2


def test_commands_for_weights_run(project):
    """The conversions; training and testing take data that is not here."""
    weights = golden.draw_weights('small')
    norms = tuple(f'norm{i}.' for i in (1, 2, 3))
    torch.save({k: v for k, v in weights.items() if not k.startswith(norms)},
               project / 'rest_small.pth')
    cfg = read_config(str(ROOT / 'configs/retinanet/rest_small_fpn_1x_coco.py'))
    torch.save(build_model(cfg).state_dict(), project / 'mmdet.pth')
    run('python tools/model_converters/convert_checkpoint.py mmdet.pth model_final.pth '
        '--to detectron2 --cfg-options model.backbone.norm_in_trunk=True '
        'model.neck.relu_before_extra_convs=True', project)
    ran = 0
    for command in commands(DOCS / 'weights.md'):
        if 'convert_checkpoint.py' in command:
            run(command, project)
            ran += 1
    assert ran == 4
    back = torch.load(project / 'back.pth')
    assert back.get('model', back).keys() == torch.load(project / 'rest_small.pth').keys()


needs_onedl = pytest.mark.skipif(
    'onedl-mmengine' not in packages_distributions()['mmengine'],
    reason='Sphinx and Jupyter are installed with OneDL packages only')
HELP = {}


def options_of(script):
    if script not in HELP:
        done = subprocess.run([sys.executable, ROOT / script, '--help'], text=True,
                              capture_output=True, check=True)
        HELP[script] = done.stdout
    return HELP[script]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_name_what_there_is(page):
    """Scripts, configs and options of every command."""
    targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    for command in commands(page):
        words = shlex.split(command, comments=True)
        if words[0] == 'make':
            assert words[1] in targets, command
        if words[:2] == ['python', '-c']:
            continue
        if words[0] == 'python' and (ROOT / words[1]).is_file():
            text = options_of(words[1])
            for option in (word for word in words if word.startswith('--')):
                assert option in text, f'{command}: {words[1]} has no {option}'
        else:
            assert words[0].startswith(tuple(s.strip() for s in STATIC)), command
        for word in words:
            if word.startswith(('configs/', 'tools/', 'benchmarks/')):
                assert (ROOT / word).exists(), f'{command}: no {word}'


@pytest.mark.parametrize('page', [*PAGES, *sorted(ROOT.glob('configs/*/README.md'))],
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


@needs_onedl
def test_every_page_is_built_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-b', 'html', DOCS,
         tmp_path / 'html'], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    built = {path.stem for path in (tmp_path / 'html').glob('*.html')}
    assert {page.stem for page in DOCS.glob('*.md')} <= built
    api = (tmp_path / 'html/api.html').read_text()
    for name in ('mmrest.ResT', 'mmrest.EMSA', 'mmrest.ops.emsa_attention',
                 'mmrest.models.checkpoint.read_state_dict'):
        assert f'id="{name}"' in api
    assert 'Stochastic depth of the last block' in api


@needs_onedl
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    import nbclient
    import nbformat
    notebook = nbformat.read(DOCS / 'tour.ipynb', as_version=4)
    assert not any(cell.get('outputs') for cell in notebook.cells)  # kept clean
    nbclient.NotebookClient(
        notebook, timeout=180, resources=dict(metadata=dict(path=str(ROOT)))).execute()
    text = str([cell.get('outputs') for cell in notebook.cells])
    assert 'largest difference' in text and 'accuracy' in text


def test_no_bare_allclose():
    """As .pre-commit-config.yaml has it; ruff, codespell and mypy are `make lint`."""
    hooks = (ROOT / '.pre-commit-config.yaml').read_text()
    entry = re.search(r"entry: '(.*allclose.*)'", hooks)[1]
    for path in ROOT.glob('tests/**/*.py'):
        assert not re.search(entry, path.read_text(), re.MULTILINE), path
    assert re.search(entry, '    torch.allclose(a, b)')
