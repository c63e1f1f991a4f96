// Runs the model beside the page, which stays usable meanwhile. It is sent the settings first,
// then pictures as {id, file}. It answers {loaded, total}, {ready}, {failed}, and of a picture
// {id, result} or {id, error}.
import {fit, interpret, pad, toPlanes} from './model.js';

const WASM = 'ort-wasm-simd-threaded.wasm';
const LONGEST = 2 ** 16 - 1, LARGEST = 2 ** 28;  // of a canvas in Chromium, blank beyond
let settings, session, tensor;
let queue;  // one after the other

self.onmessage = ({data}) => {
  queue = queue ? queue.then(() => answer(data)) : begin(data);
};

async function begin(data) {
  settings = data;
  try {
    await load();
    postMessage({ready: true});
  } catch (error) {
    postMessage({failed: error.message});
  }
}

async function answer({id, file}) {
  try {
    if (!session) throw new Error('The model cannot be loaded.');
    postMessage({id, result: await look(file)});
  } catch (error) {
    postMessage({id, error: error.message});
  }
}

async function load() {
  const total = Object.values(settings.bytes).reduce((a, b) => a + b);
  let loaded = 0;
  const report = bytes => postMessage({loaded: loaded += bytes, total});
  const ort = await import('./ort.wasm.min.mjs');
  ort.env.wasm.wasmBinary = await download(WASM, report);
  const model = await download('model.onnx', report);
  session = await ort.InferenceSession.create(model, {
    executionProviders: ['wasm'], enableMemPattern: false});  // as in run_onnx.py
  tensor = ({width, height, planes}) => {
    const bytes = new Uint8Array(3 * width * height);
    planes.forEach((plane, c) => bytes.set(plane, c * width * height));
    return new ort.Tensor('uint8', bytes, [1, 3, height, width]);
  };
}

async function download(name, report) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} is not beside this page (${response.status})`);
  const reader = response.body.getReader(), parts = [];
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    report(part.value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function look(file) {
  const picture = await decode(file);
  const begin = performance.now();
  const resized = fit(toPlanes(picture), settings.test_size);
  const outputs = await session.run({image: tensor(pad(resized, settings.test_size))});
  const {width, height, transparent} = picture;
  return {width, height, transparent, ...interpret(outputs, settings, resized, picture),
          milliseconds: performance.now() - begin};
}

async function decode(file) {
  // As stored: OpenCV converts no colours either. EXIF turns the picture.
  const options = {colorSpaceConversion: 'none', premultiplyAlpha: 'none'};
  const bitmap = await createImageBitmap(file, options).catch(() => {
    throw new Error('This is no picture that the browser can read. Take a JPEG, PNG or WebP.');
  });
  const {width, height} = bitmap;
  if (await hasFourInks(file)) {
    throw new Error('This JPEG is in CMYK, which browsers convert in their own way. '
                    + 'Save it as RGB.');
  }
  try {
    if (Math.max(width, height) > LONGEST || width * height > LARGEST) throw new Error();
    const pen = new OffscreenCanvas(width, height).getContext('2d', {willReadFrequently: true});
    pen.drawImage(bitmap, 0, 0);
    const {data} = pen.getImageData(0, 0, width, height);
    let transparent = false;
    for (let i = 3; i < data.length && !transparent; i += 4) transparent = data[i] < 255;
    return {width, height, data, transparent};
  } catch {
    throw new Error(`${width} x ${height} pixels are too many for this browser. `
                    + 'Make the picture smaller.');
  } finally {
    bitmap.close();
  }
}

async function hasFourInks(file) {
  const bytes = new DataView(await file.arrayBuffer());
  if (bytes.byteLength < 4 || bytes.getUint16(0) !== 0xffd8) return false;  // no JPEG
  for (let at = 2; at + 10 < bytes.byteLength;) {  // segments up to the frame's header
    const marker = bytes.getUint16(at);
    const isOther = [0xffc4, 0xffc8, 0xffcc].includes(marker);
    if (marker >= 0xffc0 && marker <= 0xffcf && !isOther) return bytes.getUint8(at + 9) === 4;
    at += marker === 0xffff ? 1 : 2 + bytes.getUint16(at + 2);
  }
  return false;
}
