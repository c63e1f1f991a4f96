// The page around worker.js: takes pictures, shows what was found. No module, since browsers
// run none from file://, where it still has to say what to do.
'use strict';

const $ = id => document.getElementById(id);
const cards = new Map();  // of each picture, by a number
let settings, worker, paste;

const KINDS = {
  'classifier': n => `Says which of ${n} classes a picture is of`,
  'detector': n => `Finds objects of ${n} classes`,
  'detector with masks': n => `Finds objects of ${n} classes and their outlines`,
  'segmenter': n => `Gives each pixel one of ${n} classes`,
};

function say(text, bad = false) {
  $('status').textContent = text;
  $('status').classList.toggle('bad', bad);
}

const percent = score => `${Math.round(100 * score)}%`;
const nameOf = label => settings.classes[label] ?? `class ${label}`;
const megabytes = bytes => (bytes / 1e6).toFixed(1);

// The colours of run_onnx.py: hsl(137 label, 80%, 55%).
function color(label) {
  return [0, 8, 4].map(n => {
    const k = (n + label * 137 % 360 / 30) % 12;
    return Math.round(255 * (0.55 - 0.36 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  });
}
const css = rgb => `rgb(${rgb.join(' ')})`;
const mapColor = label => label ? color(label - 1) : [0, 0, 0];

async function start() {
  if (location.protocol === 'file:') {
    return say('Opened as a file, this page cannot read its model. Run `python -m http.server` '
               + 'in its folder and open http://localhost:8000.', true);
  }
  say('Loading the model.');
  const response = await fetch('model.json');
  if (!response.ok)
    throw new Error(`model.json is not beside this page (${response.status})`);
  settings = await response.json();
  ({paste} = await import('./model.js'));
  describe();
  worker = new Worker('worker.js', {type: 'module'});
  worker.onerror = () => fail('a script does not run. It takes a browser of 2023 or later, '
                              + 'and all files that web.py wrote');
  worker.onmessage = ({data}) => receive(data);
  worker.postMessage(settings);
}

function describe() {
  const {name, kind, classes} = settings;
  document.title = name;
  $('name').textContent = name;
  const few = classes.slice(0, 12).join(', ') + (classes.length > 12 ? ', …' : '');
  $('about').textContent = classes.length ? `${KINDS[kind](classes.length)}: ${few}.` : '';
  $('threshold').hidden = !kind.startsWith('detector');
  $('runtime').textContent = `ONNX Runtime ${settings.runtime}, ` + (crossOriginIsolated
    ? 'on several threads.' : 'on one thread: the server sends no COOP and COEP headers.');
  $('files').disabled = false;
  $('examples').hidden = !settings.examples.length;
  $('examples').append(...settings.examples.map(offer));
}

function offer(name) {
  const button = document.createElement('button'), image = new Image();
  const address = `examples/${encodeURIComponent(name)}`;
  Object.assign(image, {src: address, alt: name, loading: 'lazy'});
  Object.assign(button, {type: 'button', title: name, onclick: async () => {
    const response = await fetch(address).catch(() => ({}));
    if (!response.ok) return say(`${name} cannot be loaded.`, true);
    add([new File([await response.blob()], name)]);
  }});
  button.append(image);
  return button;
}

function fail(reason) {
  $('progress').hidden = true;
  $('files').disabled = true;
  say(`The model cannot be loaded: ${reason.replace(/[.\s]+$/, '')}. If a reload does not help, write the folder `
      + 'again with web.py.', true);
}

function receive({loaded, total, ready, failed, id, result, error}) {
  if (failed) return fail(failed);
  if (loaded) {
    Object.assign($('progress'), {hidden: false, max: total, value: loaded});
    say(`Loading the model: ${megabytes(loaded)} of ${megabytes(total)} MB.`);
  } else if (ready) {
    $('progress').hidden = true;
    say(cards.size ? 'Looking.' : 'Ready.');
  } else if (cards.has(id)) {
    finish(cards.get(id), result, error);
  }
}

function add(files) {
  const fragment = document.createDocumentFragment();
  for (const file of files) {
    const element = $('card').content.firstElementChild.cloneNode(true);
    const find = selector => element.querySelector(selector);
    const card = {id: add.count++, file, element, find};
    cards.set(card.id, card);
    find('h2').textContent = file.name;
    find('.note').textContent = 'Looking …';
    find('img').src = URL.createObjectURL(file);
    find('.remove').setAttribute('aria-label', `Remove ${file.name}`);
    find('.remove').onclick = () => remove(card);
    fragment.append(element);
    worker.postMessage({id: card.id, file});
  }
  $('results').prepend(fragment);
}
add.count = 0;

function remove({id, element, find}) {
  cards.delete(id);
  URL.revokeObjectURL(find('img').src);
  element.remove();
  $('files').focus();
}

function finish(card, result, error) {
  if (error) {
    card.element.classList.add('failed');
    card.find('.note').textContent = error;
    return say(`${card.file.name}: ${error}`, true);
  }
  card.result = result;
  result.found?.sort((a, b) => b.score - a.score);
  const {width, height} = result, style = card.find('.picture').style;
  style.setProperty('--width', width);
  style.setProperty('--height', height);
  card.element.classList.add('done');
  new ResizeObserver(() => draw(card)).observe(card.find('.picture'));
  show(card);
  say(`${card.file.name}: ${card.summary}.`);
}

// Fills in the words of a card and draws it; again when the slider moves.
function show(card) {
  const {result, find} = card, {width, height} = result;
  const items = result.scores ? ofClasses(card) : result.map ? ofMap(card) : ofObjects(card);
  find('.found').replaceChildren(...items);
  find('canvas').setAttribute('role', 'img');
  find('canvas').setAttribute('aria-label', card.summary);
  find('.note').textContent = `${card.summary} · ${width} × ${height} · `
    + `${Math.round(result.milliseconds)} ms`
    + (result.transparent ? ' · partly transparent, where colours may not be exact' : '');
  draw(card);
}

function item(label, score, rgb) {
  const element = document.createElement('li');
  for (const [kind, text] of [['chip', ''], ['name', nameOf(label)], ['score', score]]) {
    const part = document.createElement('span');
    part.className = kind;
    part.textContent = text;
    element.append(part);
  }
  if (rgb) element.firstChild.style.background = css(rgb);
  return element;
}

function ofClasses(card) {
  const ranked = Array.from(card.result.scores, (score, label) => ({score, label}))
    .sort((a, b) => b.score - a.score);
  card.summary = `${nameOf(ranked[0].label)}, ${percent(ranked[0].score)}`;
  return ranked.slice(0, 10).map(({score, label}) => {
    const element = item(label, percent(score));
    element.classList.add('bar');
    element.style.setProperty('--score', score);
    return element;
  });
}

function ofMap(card) {
  const counts = new Map();
  for (const label of card.result.map) counts.set(label, (counts.get(label) ?? 0) + 1);
  const ranked = [...counts].sort((a, b) => b[1] - a[1]);
  const share = count => {
    const part = count / card.result.map.length;
    return part < 0.01 ? '< 1%' : percent(part);
  };
  card.summary = ranked.slice(0, 3).map(([label, n]) => `${nameOf(label)}: ${share(n)}`)
    .join(', ');
  return ranked.map(([label, count]) => item(label, share(count), mapColor(label)));
}

function ofObjects(card) {
  card.shown = card.result.found.filter(({score}) => score >= $('least').value);
  const counts = new Map();
  for (const {label} of card.shown) counts.set(label, (counts.get(label) ?? 0) + 1);
  const words = [...counts].map(([label, n]) => nameOf(label) + (n > 1 ? ` × ${n}` : ''));
  card.summary = card.shown.length ? `${card.shown.length} found: ${words.join(', ')}`
    : 'nothing found with this score';
  return card.shown.map(one => {
    const element = item(one.label, percent(one.score), color(one.label));
    const light = on => () => { card.lit = on ? one : null; draw(card); };
    element.tabIndex = 0;
    Object.assign(element, {onmouseenter: light(true), onfocus: light(true),
                            onmouseleave: light(false), onblur: light(false)});
    return element;
  });
}

function draw(card) {
  const canvas = card.find('canvas'), pen = canvas.getContext('2d');
  const side = Math.round(canvas.clientWidth * devicePixelRatio);
  const scale = side / card.result.width;
  canvas.width = side;
  canvas.height = Math.round(card.result.height * scale);
  if (!canvas.width || !canvas.height || card.result.scores) return;
  const pixels = pen.createImageData(canvas.width, canvas.height);
  if (card.result.map) drawMap(card.result, pixels);
  else drawMasks(card, pixels, scale);
  pen.putImageData(pixels, 0, 0);
  if (!card.shown) return;
  drawBoxes(card, pen, scale);
  drawLabels(card, pen, scale);
}

function drawMap({map, width, height}, pixels) {
  const colors = Array.from(settings.classes.length ? settings.classes : {length: 256},
                            (_, label) => mapColor(label));
  for (let y = 0, at = 0; y < pixels.height; y++) {
    const row = Math.min(Math.floor((y + 0.5) * height / pixels.height), height - 1) * width;
    for (let x = 0; x < pixels.width; x++, at += 4) {
      const column = Math.min(Math.floor((x + 0.5) * width / pixels.width), width - 1);
      pixels.data.set(colors[map[row + column]], at);
      pixels.data[at + 3] = 128;
    }
  }
}

// Outlines as sharp as the screen: masks are pasted at its resolution.
function drawMasks({shown, lit}, pixels, scale) {
  for (const one of shown) {
    if (!one.mask || lit && lit !== one) continue;
    const part = paste(one.mask, one.box.map(x => x * scale), pixels.width, pixels.height,
                       settings.mask_threshold);
    const rgba = [...color(one.label), 128];
    part.data.forEach((on, i) => {
      const y = part.y + Math.floor(i / part.width), x = part.x + i % part.width;
      if (on) pixels.data.set(rgba, 4 * (y * pixels.width + x));
    });
  }
}

function drawBoxes({shown, lit}, pen, scale) {
  pen.lineWidth = 2 * devicePixelRatio;
  for (const one of shown) {
    const [x1, y1, x2, y2] = one.box.map(x => x * scale);
    pen.globalAlpha = lit && lit !== one ? 0.25 : 1;
    pen.strokeStyle = css(color(one.label));
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
}

function drawLabels(card, pen, scale) {
  const unit = devicePixelRatio, taken = card.labels = [];
  pen.font = `600 ${13 * unit}px system-ui, sans-serif`;
  pen.textBaseline = 'middle';
  for (const one of card.shown) {
    const text = `${nameOf(one.label)} ${percent(one.score)}`;
    const size = [pen.measureText(text).width + 8 * unit, 18 * unit];
    const place = findPlace(one.box.map(x => x * scale), size, pen.canvas, taken);
    if (!place) continue;  // the list beside the picture has it
    taken.push(place);
    const [red, green, blue] = color(one.label);
    pen.globalAlpha = card.lit && card.lit !== one ? 0.25 : 1;
    pen.fillStyle = css([red, green, blue]);
    pen.fillRect(...place);
    pen.fillStyle = 0.299 * red + 0.587 * green + 0.114 * blue > 120 ? 'black' : 'white';
    pen.fillText(text, place[0] + 4 * unit, place[1] + place[3] / 2);
  }
}

// Where a label covers no other: around the box, then in it, else nowhere.
function findPlace([x1, y1, x2, y2], [w, h], {width, height}, taken) {
  const edge = 1;  // half of the line
  const places = [[x1 - edge, y1 - h], [x2 - w + edge, y1 - h], [x1 - edge, y2],
                  [x2 - w + edge, y2], [x1 - edge, y1], [x2 - w + edge, y1],
                  [x1 - edge, y2 - h], [x2 - w + edge, y2 - h], [x2, y1], [x1 - w, y1]];
  for (const [left, top] of places) {
    const x = Math.max(Math.min(left, width - w), 0), y = top;
    const free = taken.every(([a, b, c, d]) => x >= a + c || a >= x + w || y >= b + d
                             || b >= y + h);
    if (free && y >= 0 && y + h <= height) return [x, y, w, h];
  }
}

$('files').onchange = event => {
  add(event.target.files);
  event.target.value = '';  // the same file may be chosen again
};
$('least').oninput = () => {
  $('shown').textContent = percent($('least').value);
  for (const card of cards.values()) if (card.result) show(card);
};
document.ondragover = event => {
  event.preventDefault();
  $('drop').classList.add('over');
};
document.ondragleave = () => $('drop').classList.remove('over');
document.ondrop = event => {
  event.preventDefault();
  $('drop').classList.remove('over');
  if (!$('files').disabled) add(event.dataTransfer.files);
};
start().catch(error => fail(error.message));
