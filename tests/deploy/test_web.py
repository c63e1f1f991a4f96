"""The page: its folder, its server, and in headless Chromium, what it finds."""
import base64
import importlib
import json
import shutil
import socket
import threading
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from mmrest.deploy.export import describe, resolve, to_onnx
from mmrest.deploy.web import PAGE, runtime, write_page
from mmrest.deploy.web.server import make_server
from mmrest.errors import UserError

from .chromium import Chromium
from .models import ROOT, build, config

onnx = pytest.importorskip('onnx')
parser = pytest.importorskip('onnx.parser')
pytest.importorskip('onnxruntime')
CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
if CHROMIUM is None:
    MISSING = 'chromium is not installed'
elif not all((runtime.cache() / name).is_file() for name in runtime.FILES):
    MISSING = "npm's onnxruntime-web is not in the cache, where web.py puts it"
else:
    MISSING = ''
in_browser = pytest.mark.skipif(bool(MISSING), reason=MISSING)
SIZE = dict(scale=[64, 48], keep_ratio=False, interpolation='bilinear', antialias=False)
CLASSES = ['cat', 'dog', '<b>cow</b>']
# Models whose every output hangs on every pixel.
GRAPHS = dict(
    detector='''(uint8[N,3,H,W] image) => (float[N,n,4] boxes, float[N,n] scores,
                                          int64[N,n] labels, float[N,n,28,28] masks) {
        floats = Cast<to = 1>(image)
        axes = Constant<value_ints = [2, 3]>()
        means = ReduceMean<keepdims = 0>(floats, axes)
        most = Constant<value = float {255}>()
        scores = Div(means, most)
        corners = Constant<value = float[1,3,4] {10.3,5.1,50,40.7, 20,30,63,48, 0,0,9,9}>()
        last = Constant<value_ints = [-1]>()
        column = Unsqueeze(scores, last)
        boxes = Add(corners, column)
        labels = Constant<value = int64[1,3] {2, 0, -1}>()
        start = Constant<value_ints = [0, 0]>()
        end = Constant<value_ints = [28, 28]>()
        corner = Slice(floats, start, end, axes)
        masks = Div(corner, most)
    }''',
    segmenter='''(uint8[N,3,H,W] image) => (int64[N,H,W] labels) {
        integers = Cast<to = 7>(image)
        weights = Constant<value = int64[1,3,1,1] {7, 5, 3}>()
        weighted = Mul(integers, weights)
        axes = Constant<value_ints = [1]>()
        labels = ReduceSum<keepdims = 0>(weighted, axes)
    }''',
    classifier='''(uint8[N,3,H,W] image) => (float[N,n] logits) {
        floats = Cast<to = 1>(image)
        axes = Constant<value_ints = [2, 3]>()
        means = ReduceMean<keepdims = 0>(floats, axes)
        unit = Constant<value = float {40}>()
        logits = Div(means, unit)
    }''')
METADATA = dict(detector=dict(mask_threshold=0.5, classes=CLASSES, test_size=SIZE),
                segmenter=dict(classes=list(map(str, range(4000))), test_size=SIZE),
                classifier=dict(activation='softmax', classes=CLASSES, test_size=SIZE))


def write(path, kind, graph=None, **metadata):
    """A model of GRAPHS."""
    text = graph or GRAPHS[kind]
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]> graph {text}')
    metadata = {**METADATA[kind], **metadata}
    onnx.helper.set_model_props(proto, {
        name: json.dumps(value) for name, value in metadata.items() if value is not None})
    onnx.save(proto, str(path))
    return path


@pytest.fixture
def run_onnx(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/deployment'))
    return importlib.import_module('run_onnx')


@pytest.fixture
def no_npm(tmp_path, monkeypatch):
    """An empty cache, and a PATH without npm."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('PATH', str(tmp_path / 'bin'))
    (tmp_path / 'bin').mkdir()


@pytest.fixture
def cached(no_npm):
    """A cache that has something under the names of the three files."""
    runtime.cache().mkdir(parents=True)
    for name in runtime.FILES:
        (runtime.cache() / name).write_text(name)


NPM = f'''#!/bin/sh
PATH=/usr/bin:/bin
[ "$*" = "pack onnxruntime-web@{runtime.VERSION} --loglevel=error" ] || exit 2
mkdir -p package/dist
for name in {" ".join(runtime.FILES)} others; do echo "$name" >package/dist/$name; done
tar czf onnxruntime-web.tgz package
'''


def test_npm_fetches_three_files_once(no_npm, tmp_path):
    with pytest.raises(UserError) as error:
        runtime.find()
    assert 'npm is not installed' in str(error.value) and runtime.VERSION in str(error.value)
    assert all(name in str(error.value) for name in (*runtime.FILES, str(runtime.cache())))
    npm = tmp_path / 'bin/npm'
    for text, words in (('#!/bin/sh\necho no network >&2; exit 1', 'npm failed .no network.'),
                        (NPM, None), ('#!/bin/sh\nexit 1', None)):  # the last is not run
        npm.write_text(text)
        npm.chmod(0o755)
        if words:
            with pytest.raises(UserError, match=f'{words}, and the page needs three files'):
                runtime.find()
        else:
            assert [path.read_text().strip() for path in runtime.find()] == [*runtime.FILES]
    assert len(list(runtime.cache().iterdir())) == 3


def test_the_folder(cached, tmp_path):
    model = write(tmp_path / 'pets.onnx', 'detector', mean=[1, 2, 3])
    Image.new('RGB', (9, 9)).save(tmp_path / "a 'b'#.jpg")
    folder = tmp_path / 'new/page'
    write_page(model, folder, [tmp_path / "a 'b'#.jpg"])
    settings = json.loads((folder / 'model.json').read_text())
    assert settings.pop('bytes') == {'model.onnx': model.stat().st_size, runtime.WASM: 27}
    assert settings == dict(METADATA['detector'], name='pets', kind='detector with masks',
                            runtime=runtime.VERSION, examples=["a 'b'#.jpg"])
    assert (folder / 'model.onnx').read_bytes() == model.read_bytes()
    assert {path.name for path in folder.iterdir()} == {
        'index.html', 'style.css', 'page.js', 'model.js', 'worker.js', 'model.json',
        'model.onnx', 'examples', *runtime.FILES}
    for path in folder.glob('*.*s*'):  # nothing from elsewhere
        assert 'http' not in path.read_text().replace('http://localhost:8000', '').replace(
            'http.server', '').replace('http-equiv', '')


BACKBONE = '(uint8[N,3,H,W] image) => (uint8[N,3,H,W] stage1) { stage1 = Identity(image) }'


@pytest.mark.parametrize('kind, changes, words', [
    ('detector', dict(graph=BACKBONE), 'gives stage1, which .*without --part backbone'),
    ('detector', dict(precision='int8'), 'is int8, with which'),
    ('classifier', dict(slide=dict(crop_size=[8, 8])), 'slides over an image'),
    ('classifier', dict(activation=None), 'has no `activation` in its metadata: write it'),
    ('segmenter', dict(test_size=dict(SIZE, interpolation='bicubic')),
     "cannot resize with interpolation='bicubic' and antialias=False, only with bilinear, nea"),
])
def test_models_that_the_page_cannot_show_are_refused(cached, tmp_path, kind, changes, words):
    model = write(tmp_path / 'x.onnx', kind, **changes)
    with pytest.raises(UserError, match=f"model='.*x.onnx'.* {words}"):
        write_page(model, tmp_path / 'page')
    assert not (tmp_path / 'page').exists()


def test_other_files_are_refused(cached, tmp_path):
    model = write(tmp_path / 'x.onnx', 'detector')
    (tmp_path / 'y.onnx').write_text('no model')
    with pytest.raises(UserError, match="model='.*y.onnx' is no ONNX file: "):
        write_page(tmp_path / 'y.onnx', tmp_path / 'page')
    for names, words in ((['none.jpg'], 'no such file'), (['x.onnx'], 'must be one of .bmp'),
                         (['a.png', 'b/a.png'], "two are named 'a.png'")):
        for name in ('a.png', 'b/a.png'):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        with pytest.raises(UserError, match=f'^examples: .*{words}'):
            write_page(model, tmp_path / 'page', [tmp_path / name for name in names])


def test_the_script_serves_this_computer_alone(cached, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/deployment'))
    tool = importlib.import_module('web')
    model, folder = write(tmp_path / 'x.onnx', 'detector'), str(tmp_path / 'page')
    answers = {}

    def get(server):
        assert server.server_address[0] == '127.0.0.1'
        for path in ('', *runtime.FILES, 'style.css'):
            thread = threading.Thread(target=server.handle_request)
            thread.start()
            address = f'http://127.0.0.1:{server.server_port}/{path}'
            with urllib.request.urlopen(address, timeout=60) as answer:
                answers[path] = answer.headers
            thread.join()

    monkeypatch.setattr(tool.make_server(folder, 0).__class__, 'serve_forever', get)
    tool.main([str(model), '--out', folder, '--serve', '--port', '0'])
    assert f'{folder}/index.html: put' in capsys.readouterr().out
    assert [answers[name].get_content_type() for name in ('', *runtime.FILES, 'style.css')] == [
        'text/html', 'text/javascript', 'text/javascript', 'application/wasm', 'text/css']
    for headers in answers.values():
        assert headers['Cross-Origin-Opener-Policy'] == 'same-origin'
        assert headers['Cross-Origin-Embedder-Policy'] == 'require-corp'
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f'--port {port} cannot be used: .*in use'):
            tool.main([str(model), '--out', folder, '--serve', '--port', str(port)])


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
    with Chromium(CHROMIUM, tmp_path_factory.mktemp('profile')) as browser:
        yield browser


@contextmanager
def serve(folder):
    with make_server(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()
        thread.join()


DONE = "cards.size === {} && [...cards.values()].every(card => /done|failed/.test(" \
       "card.element.className))"
RESULTS = '''Object.fromEntries([...cards.values()].map(({file, result, find}) => [
    file.name, result ? {...result, map: result.map && [...result.map],
        found: result.found?.map(({mask, ...one}) => {
            if (!mask) return one;
            const part = paste(mask, one.box, result.width, result.height,
                               settings.mask_threshold);
            return {...one, mask: {...part, data: part.data.join('')}};
        }), scores: result.scores && [...result.scores]} : find('.note').textContent]))'''


REFUSED = {'text.jpg': 'This is no picture that the browser can read.',
           'inks.jpg': 'This JPEG is in CMYK',
           'wide.png': '70000 x 1 pixels are too many for this browser.'}


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """What people drop: JPEG, PNG, turned, odd sizes, one pixel, grey, 16 bits, no picture."""
    folder = tmp_path_factory.mktemp('pictures')
    rng = np.random.default_rng(0)

    def scene(w, h):  # smooth, as photographs are
        return Image.fromarray(rng.integers(0, 256, (h // 9 + 2, w // 9 + 2, 3), np.uint8)
                               ).resize((w, h), Image.Resampling.BICUBIC)

    exif = Image.Exif()
    exif[0x0112] = 6
    scene(201, 133).save(folder / 'photo.jpg', subsampling=2)
    scene(97, 61).save(folder / 'turned.jpg', exif=exif)
    scene(83, 61).save(folder / 'odd.png')
    scene(128, 96).save(folder / 'twice.png')
    scene(1, 1).save(folder / 'pixel.png')
    scene(50, 90).convert('L').save(folder / 'grey.jpg')
    deep = rng.integers(0, 65536, (40, 50), np.uint16)
    Image.fromarray(deep).save(folder / 'deep.png')
    scene(40, 30).convert('CMYK').save(folder / 'inks.jpg')
    Image.new('L', (70000, 1)).save(folder / 'wide.png')
    (folder / 'text.jpg').write_text('no picture')
    return sorted(folder.iterdir())


def same(found, wanted, slack):
    """Compare what the page found in a picture with run_onnx.py."""
    if 'pred_scores' in wanted:
        np.testing.assert_allclose(found['scores'], wanted['pred_scores'], atol=1e-5)
    elif 'bboxes' not in wanted:
        np.testing.assert_array_equal(found['map'], wanted['labels'].ravel())
    else:
        order = np.argsort(-np.array(wanted['scores']), kind='stable')
        found = found['found']
        assert [one['label'] for one in found] == [wanted['labels'][i] for i in order]
        for one, i in zip(found, order):
            np.testing.assert_allclose(one['box'], wanted['bboxes'][i], rtol=0,
                                       atol=5e-4 * slack)
            assert abs(one['score'] - wanted['scores'][i]) < 1e-5 * slack
            if 'masks' in wanted:
                assert differing(one['mask'], wanted['masks'][i]) < slack


def differing(part, wanted):
    """How many pixels of a mask differ."""
    x, y, w, h = (part[name] for name in ('x', 'y', 'width', 'height'))
    mask = np.zeros(wanted['size'], bool)
    mask[y:y + h, x:x + w] = np.array([*part['data']], int).reshape(h, w)
    run_onnx = importlib.import_module('run_onnx')
    return (mask != run_onnx.decode(wanted)).sum()


def compare(chromium, run_onnx, model, folder, pictures, slack=1):
    """Choose pictures on a model's page, and compare. Returns what was found, by name."""
    write_page(model, folder)
    with serve(folder) as address:
        chromium.open(address)
        chromium.wait("!$('files').disabled")
        chromium.choose('#files', *pictures)
        chromium.wait(DONE.format(len(pictures)))
        assert chromium.evaluate('crossOriginIsolated')
        found = chromium.evaluate(RESULTS)
        addresses = chromium.evaluate(
            'performance.getEntriesByType("resource").map(entry => entry.name)')
        assert all(one.startswith((address, 'blob:', 'data:')) for one in addresses)
    native = run_onnx.load(str(model))
    for path in pictures:
        if path.name in REFUSED:
            assert found[path.name].startswith(REFUSED[path.name])
            continue
        image = run_onnx.read(path)
        assert (found[path.name]['width'], found[path.name]['height']) == image.size
        same(found[path.name], native(image), slack)
    return found


@in_browser
@pytest.mark.parametrize('kind', GRAPHS)
def test_the_page_finds_what_run_onnx_finds(chromium, run_onnx, pictures, tmp_path, kind):
    model = write(tmp_path / 'x.onnx', kind)
    found = compare(chromium, run_onnx, model, tmp_path / 'page', pictures)
    assert len(found) == 10 and found['turned.jpg']['width'] == 61
    if kind == 'detector':
        assert all('1' in found['photo.jpg']['found'][i]['mask']['data'] for i in (0, 1))
        assert chromium.evaluate("document.querySelector('.found b')") is None
        assert '<b>cow</b>' in chromium.evaluate('document.body.innerText')


@in_browser
@pytest.mark.slow
def test_the_page_finds_what_run_onnx_finds_with_a_detector(chromium, run_onnx, pictures,
                                                            tmp_path):
    _, network, _ = resolve(build('mask_rcnn'), False)
    model = tmp_path / 'x.onnx'
    proto = to_onnx(network, describe(config('mask_rcnn')))
    for output in [x for x in proto.graph.output if x.name in network.probes]:
        proto.graph.output.remove(output)
    onnx.save(proto, str(model))
    photographs = [path for path in pictures if path.suffix == '.jpg']
    # float32 rounds more in an untrained model
    found = compare(chromium, run_onnx, model, tmp_path / 'page', photographs, slack=10)
    assert len(found['photo.jpg']['found']) > 3


SIZES = [
    {}, dict(scale=[90, 70], keep_ratio=True, antialias=False),
    dict(scale=[31, 90], keep_ratio=False, interpolation='nearest', antialias=False),
    dict(scale=[20, 90], keep_ratio=True, interpolation='nearest', antialias=True),
    dict(edge=40, crop=[32, 24], interpolation='bicubic', antialias=True),
    dict(edge=90, crop=[95, 101], interpolation='bilinear', antialias=True),
    dict(scale=[60, 40], keep_ratio=True, pad=[64, 50], pad_value=[1, 2, 3], antialias=False)]


@in_browser
def test_pictures_get_the_size_that_run_onnx_gives_them(chromium, run_onnx):
    rng = np.random.default_rng(0)
    with serve(PAGE) as address:
        chromium.open(address)
        chromium.wait("$('status').innerText.startsWith('The model cannot be loaded: "
                      "model.json is not beside this page (404).')")
        for size in SIZES:
            for w, h in ((61, 83), (120, 80), (1, 7)):
                pixels = rng.integers(0, 256, (h, w, 4), np.uint8)
                text = base64.b64encode(pixels.tobytes()).decode()
                *got, planes = chromium.evaluate(f"""import('./model.js').then(model => {{
                    const data = Uint8Array.from(atob('{text}'), c => c.charCodeAt(0));
                    const size = {json.dumps(size)};
                    const picture = model.toPlanes({{width: {w}, height: {h}, data}});
                    const image = model.pad(model.fit(picture, size), size);
                    return [image.width, image.height, image.planes.map(plane => [...plane])];
                }})""")
                image = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
                wanted = np.asarray(run_onnx.pad(run_onnx.fit(image, size), size))
                assert (*got[::-1], 3) == wanted.shape
                np.testing.assert_array_equal(
                    np.reshape(planes, (3, *wanted.shape[:2])), wanted.transpose(2, 0, 1))


def crowd(n=40):
    """A graph that finds many boxes in one place."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 30, (n, 2))
    boxes = np.hstack([low, low + rng.uniform(5, 18, (n, 2))]).round(2)
    boxes, scores, labels = (', '.join(map(str, x.ravel())) for x in (
        boxes, np.arange(n, 0, -1) / n, np.arange(n) % 3))
    return f'''(uint8[N,3,H,W] image) => (float[N,n,4] boxes, float[N,n] scores,
                                           int64[N,n] labels) {{
        boxes = Constant<value = float[1,{n},4] {{{boxes}}}>()
        scores = Constant<value = float[1,{n}] {{{scores}}}>()
        labels = Constant<value = int64[1,{n}] {{{labels}}}>()
    }}'''


@in_browser
def test_the_page_by_keyboard_on_a_phone(chromium, tmp_path):
    Image.new('RGB', (64, 48), (9, 90, 90)).save(tmp_path / "a 'b'#.jpg")
    model = write(tmp_path / 'x.onnx', 'detector', crowd(), mask_threshold=None)
    write_page(model, tmp_path / 'page', [tmp_path / "a 'b'#.jpg"])
    with serve(tmp_path / 'page') as address:
        chromium.call('Emulation.setDeviceMetricsOverride', width=360, height=640,
                      deviceScaleFactor=2, mobile=True)
        chromium.open(address)
        chromium.wait("$('status').innerText === 'Ready.'")
        focused = []
        for key in ('Tab', 'Tab', 'Enter'):
            press(chromium, key)
            focused.append(chromium.evaluate(
                'document.activeElement.id || document.activeElement.title'))
        assert focused == ['files', "a 'b'#.jpg", "a 'b'#.jpg"]
        chromium.wait("$('status').innerText.startsWith('a \\'b\\'#.jpg: 29 found: cat × 10')")
        assert chromium.evaluate("document.querySelectorAll('.found li').length") == 29
        assert chromium.evaluate('document.documentElement.scrollWidth') <= 360
        labels = np.array(chromium.evaluate('cards.get(0).labels'))
        left, top, right, bottom = *labels[:, :2].T, *(labels[:, :2] + labels[:, 2:]).T
        apart = (right[:, None] <= left) | (bottom[:, None] <= top)
        assert len(labels) > 3 and (apart | apart.T | np.eye(len(labels), dtype=bool)).all()
        press(chromium, 'Tab')
        for _ in range(59):
            press(chromium, 'ArrowRight')
        assert chromium.evaluate("$('shown').innerText") == '89%'
        assert chromium.evaluate("document.querySelectorAll('.found li').length") == 5
    chromium.call('Emulation.clearDeviceMetricsOverride')


def press(chromium, key):
    codes = dict(Tab=9, Enter=13, ArrowRight=39)
    text = dict(text='\r') if key == 'Enter' else {}
    for kind in ('keyDown', 'keyUp'):
        chromium.call('Input.dispatchKeyEvent', type=kind, key=key, code=key,
                      windowsVirtualKeyCode=codes[key], **(text if kind == 'keyDown' else {}))


@in_browser
def test_what_cannot_be_loaded_is_a_sentence(chromium, tmp_path):
    write_page(write(tmp_path / 'x.onnx', 'classifier'), tmp_path / 'page')
    (tmp_path / 'page/model.onnx').write_bytes(b'no model')
    chromium.open(f'file://{tmp_path}/page/index.html')
    chromium.wait("$('status').innerText.startsWith('Opened as a file, this page cannot')")
    with serve(tmp_path / 'page') as address:
        for words in ('Can', 'model.onnx is not beside this page (404).'):
            chromium.open(address)
            chromium.wait("$('status').innerText.startsWith("
                          f"'The model cannot be loaded: {words}')")
            assert chromium.evaluate("$('files').disabled && $('progress').hidden")
            (tmp_path / 'page/model.onnx').unlink(missing_ok=True)
