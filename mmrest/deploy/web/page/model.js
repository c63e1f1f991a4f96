// What run_onnx.py does around a model, number for number. An image here is
// {width, height, planes}, planes of bytes: R, G, B.

export function toPlanes({data, width, height}) {
  const planes = [0, 1, 2].map(() => new Uint8Array(width * height));
  planes.forEach((plane, c) => {
    for (let i = 0; i < plane.length; i++) plane[i] = data[4 * i + c];
  });
  return {width, height, planes};
}

// The nearest integer, halves to the even one, as in Python and NumPy.
function round(x) {
  const up = Math.round(x);
  return up - x === 0.5 && up % 2 ? up - 1 : up;
}

// Resizes and crops as the config's test pipeline does.
export function fit(image, size) {
  const [w, h] = target(image.width, image.height, size);
  if (w !== image.width || h !== image.height) image = resize(image, w, h, size);
  if (!size.crop) return image;
  const [width, height] = size.crop.map((side, i) => Math.min(side, [w, h][i]));
  const [x, y] = [(w - size.crop[0]) / 2, (h - size.crop[1]) / 2].map(
    offset => Math.max(round(offset), 0));
  return place(image, Math.min(width, w - x), Math.min(height, h - y), -x, -y, [0, 0, 0]);
}

function target(w, h, {scale, keep_ratio: keepRatio, edge}) {
  if (edge) {
    const short = Math.min(w, h), factor = edge / short;
    return [w, h].map(side => side === short ? edge : Math.trunc(side * factor));
  }
  if (!scale || !keepRatio) return scale || [w, h];
  const factor = Math.min(Math.max(...scale) / Math.max(w, h),
                          Math.min(...scale) / Math.min(w, h));
  return [w, h].map(side => Math.trunc(side * factor + 0.5));
}

export function pad(image, {pad: least, pad_value: value}) {
  if (!least) return image;
  const [w, h] = [Math.max(image.width, least[0]), Math.max(image.height, least[1])];
  return place(image, w, h, 0, 0, value);
}

// Puts an image at (x, y) into one of another size.
function place({width, height, planes}, w, h, x, y, value) {
  planes = planes.map((plane, c) => {
    const out = new Uint8Array(w * h).fill(value[c]);
    const left = Math.max(-x, 0), right = Math.min(width, w - x);
    for (let row = Math.max(-y, 0); row < Math.min(height, h - y); row++)
      out.set(plane.subarray(row * width + left, row * width + right),
              (row + y) * w + x + left);
    return out;
  });
  return {width: w, height: h, planes};
}

function resize({width, height, planes}, w, h, {antialias, interpolation = 'bilinear'}) {
  const from = [width, height], to = [w, h];
  let one;
  if (interpolation === 'nearest') one = antialias ? nearestPillow : nearestOpenCV;
  else if (antialias) one = (...args) => resample(...args, FILTERS[interpolation]);
  else one = bilinear;
  return {width: w, height: h, planes: planes.map(plane => one(plane, from, to))};
}

function nearestOpenCV(plane, from, to) {
  const at = (i, size, n) => Math.min(Math.floor(i * (1 / (n / size))), size - 1);
  return pick(plane, from, to, (size, n) => Array.from({length: n}, (_, i) => at(i, size, n)));
}

// Pillow adds up the steps between bytes, and multiplies them between larger numbers.
function nearestPillow(plane, from, to) {
  return pick(plane, from, to, (size, n) => {
    const step = size / n;
    let at = step * 0.5;
    return Array.from({length: n}, (_, i) => {
      const index = Math.trunc(plane instanceof Uint8Array ? at : (i + 0.5) * step);
      at += step;
      return index;
    });
  });
}

function pick(plane, [W, H], [w, h], choose) {
  const out = new plane.constructor(w * h), columns = choose(W, w);
  choose(H, h).forEach((row, y) => columns.forEach((column, x) => {
    out[y * w + x] = plane[row * W + column];
  }));
  return out;
}

// OpenCV's: weights of 11 bits along the rows, then along the columns; see resize() in
// run_onnx.py for what it drops in between.
function bilinear(plane, [W, H], [w, h]) {
  const out = new Uint8Array(w * h);
  if (2 * w === W && 2 * h === H) {
    for (let y = 0, at = 0; y < h; y++)
      for (let x = 0, i = 2 * y * W; x < w; x++, i += 2)
        out[at++] = plane[i] + plane[i + 1] + plane[i + W] + plane[i + W + 1] + 2 >> 2;
    return out;
  }
  const columns = neighbours(W, w, true), rows = neighbours(H, h, false);
  const lines = new Map();
  const line = y => {
    if (lines.has(y)) return lines.get(y);
    const made = new Int32Array(w);
    for (let x = 0; x < w; x++)
      made[x] = plane[y * W + columns.low[x]] * columns.a[x]
                + plane[y * W + columns.high[x]] * columns.b[x] >> 4;
    if (lines.size > 2) lines.delete(lines.keys().next().value);
    lines.set(y, made);
    return made;
  };
  for (let y = 0, at = 0; y < h; y++) {
    const top = line(rows.low[y]), bottom = line(rows.high[y]), a = rows.a[y], b = rows.b[y];
    for (let x = 0; x < w; x++)
      out[at++] = (top[x] * a >> 16) + (bottom[x] * b >> 16) + 2 >> 2;
  }
  return out;
}

function neighbours(size, n, clip) {
  const found = {};
  for (const name of ['low', 'high', 'a', 'b']) found[name] = new Int32Array(n);
  for (let i = 0; i < n; i++) {
    const at = Math.fround((i + 0.5) * (1 / (n / size)) - 0.5), low = Math.floor(at);
    const part = clip && (low < 0 || low >= size - 1) ? 0 : Math.fround(at - low);
    found.a[i] = round(Math.fround(1 - part) * 2048);
    found.b[i] = round(part * 2048);
    found.low[i] = Math.min(Math.max(low, 0), size - 1);
    found.high[i] = Math.min(Math.max(low + 1, 0), size - 1);
  }
  return found;
}

// Pillow's: a filter as wide as what it makes smaller, with weights of 22 bits.
const FILTERS = {
  bilinear: [1, x => Math.max(1 - Math.abs(x), 0)],
  bicubic: [2, x => {
    x = Math.abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
  }],
};

function resample(plane, [W, H], [w, h], filter) {
  const wide = new Uint8Array(w * H);
  weigh(W, w, filter).forEach(({first, weights}, x) => {
    for (let y = 0; y < H; y++) wide[y * w + x] = sum(plane, y * W + first, 1, weights);
  });
  const out = new Uint8Array(w * h);
  weigh(H, h, filter).forEach(({first, weights}, y) => {
    for (let x = 0; x < w; x++) out[y * w + x] = sum(wide, first * w + x, w, weights);
  });
  return out;
}

function sum(plane, at, step, weights) {
  let total = 2 ** 21;
  for (let i = 0; i < weights.length; i++, at += step) total += plane[at] * weights[i];
  return Math.min(Math.max(total >> 22, 0), 255);
}

function weigh(size, n, [support, filter]) {
  const scale = size / n, wide = Math.max(scale, 1);
  return Array.from({length: n}, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support * wide + 0.5), 0);
    const end = Math.min(Math.trunc(center + support * wide + 0.5), size);
    const weights = Float64Array.from({length: end - first},
                                      (_, j) => filter((first + j - center + 0.5) / wide));
    const total = weights.reduce((a, b) => a + b, 0);
    return {first, weights: weights.map(weight => {
      const bits = weight / total * 2 ** 22;
      return Math.trunc(bits < 0 ? bits - 0.5 : bits + 0.5);
    })};
  });
}

// What the model's outputs mean for a picture of width x height pixels, as run_onnx.py's Model.
export function interpret(outputs, settings, resized, {width, height}) {
  const {logits, boxes, scores, labels, masks} = outputs;
  if (logits) return {scores: activate(Array.from(logits.data), settings.activation)};
  if (!boxes) {
    const [h, w] = labels.dims.slice(1);
    const Numbers = settings.classes.length <= 256 ? Uint8Array : Uint16Array;
    const small = Numbers.from(labels.data, Number);
    return {map: nearestPillow(small, [w, h], [width, height])};
  }
  const scale = [resized.width / width, resized.height / height].map(Math.fround);
  const bins = masks?.dims[3] ** 2;
  const found = [];
  labels.data.forEach((label, i) => {
    if (label < 0) return;
    const box = Array.from(boxes.data.subarray(4 * i, 4 * i + 4),
                           (x, k) => Math.fround(x / scale[k % 2]));
    found.push({label: Number(label), score: scores.data[i], box,
                mask: masks?.data.slice(i * bins, (i + 1) * bins)});
  });
  return {found};
}

function activate(logits, activation) {
  if (activation === 'sigmoid') return logits.map(x => 0.5 + 0.5 * Math.tanh(0.5 * x));
  const largest = Math.max(...logits), scores = logits.map(x => Math.exp(x - largest));
  const total = scores.reduce((a, b) => a + b, 0);
  return scores.map(score => score / total);
}

// Probabilities in a box -> the pixels of at least a threshold, of the part of the picture
// that has the box: {x, y, width, height, data}.
export function paste(mask, [x1, y1, x2, y2], width, height, threshold) {
  const bins = Math.sqrt(mask.length);
  const clip = (x, size) => Math.min(Math.max(x, 0), size);
  const x = clip(Math.floor(x1) - 1, width), y = clip(Math.floor(y1) - 1, height);
  const columns = interpolation(x, clip(Math.ceil(x2) + 1, width), x1, x2, bins);
  const rows = interpolation(y, clip(Math.ceil(y2) + 1, height), y1, y2, bins);
  const data = new Uint8Array(rows.length * columns.length), line = new Float64Array(bins + 2);
  let at = 0;
  for (const [i, b] of rows) {  // a line has a bin of zeros at both ends
    const value = (row, j) => row < 0 || row >= bins ? 0 : mask[row * bins + j];
    for (let j = 0; j < bins; j++) line[j + 1] = (1 - b) * value(i, j) + b * value(i + 1, j);
    for (const [j, a] of columns)
      data[at++] = (1 - a) * line[j + 1] + a * line[j + 2] >= threshold;
  }
  return {x, y, width: columns.length, height: rows.length, data};
}

// For each pixel, the bin at its left and how far it is from that.
function interpolation(first, end, low, high, bins) {
  return Array.from({length: end - first}, (_, i) => {
    const at = (first + i + 0.5 - low) / Math.max(high - low, 1e-6) * bins - 0.5;
    if (at < -1 || at >= bins) return [-1, 0];  // that of zeros
    return [Math.floor(at), at - Math.floor(at)];
  });
}
