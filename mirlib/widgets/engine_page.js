// The page's side of the model: starts the worker once, brings it the weights, and asks it things. WORKER is its source.
function startEngine(model) {
  if (self.mirlibEngine) return self.mirlibEngine;
  const worker = new Worker(URL.createObjectURL(new Blob([WORKER], { type: "text/javascript" })));
  const waiting = new Map();
  let count = 0;
  worker.onmessage = ({ data: { id, part, done, error } }) => {
    const { resolve, reject, progress } = waiting.get(id);
    if (part !== undefined) return progress(part);
    waiting.delete(id);
    if (error) reject(new Error(error));
    else resolve(done);
  };
  const ask = (task, given, progress = () => {}) =>
    new Promise((resolve, reject) => {
      waiting.set((count += 1), { resolve, reject, progress });
      worker.postMessage({ id: count, task, ...given });
    });
  let loading = null;
  const load = (progress) => {
    loading ??= packetPieces(model, progress).then((pieces) => ask("load", { pieces }));
    loading.catch(() => (loading = null)); // the next wish tries again
    return loading;
  };
  self.mirlibEngine = { ask, load };
  return self.mirlibEngine;
}

// The packet of weights: from the book's scripts, one after the other, or in a notebook from the kernel.
async function packetPieces(model, progress) {
  const near = document.querySelector('link[href*="_static/"], script[src*="_static/"]');
  if (!near) {
    return new Promise((resolve) => {
      const take = () => model.get("_packet")?.byteLength && resolve([model.get("_packet")]);
      model.on("change:_packet", take);
      assign(model, { _wanted: true });
      take(); // of a notebook that was loaded again the kernel has sent it before
    });
  }
  const address = near.getAttribute("href") ?? near.getAttribute("src");
  const folder = `${address.slice(0, address.indexOf("_static/"))}_static/miniature`;
  const pieces = model.get("pieces");
  for (let i = 0; i < pieces; i += 1) {
    await new Promise((resolve, reject) => {
      const script = element("script", { src: `${folder}/${i}.js` });
      script.addEventListener("load", resolve);
      script.addEventListener("error", () => reject(new Error(`${folder}/${i}.js is not there`)));
      document.head.append(script);
    });
    progress((i + 1) / pieces);
  }
  return self.mirlibMiniature;
}

// Says how much of the model has come.
const saying = (status) => (part) => {
  status.textContent = `The model comes with the page: ${Math.round(100 * part)} % of 5 MB.`;
};

// Shows pixels on a canvas of 48 x 48.
function putPixels(canvas, pixels) {
  const image = new ImageData(48, 48);
  for (let i = 0; i < 48 * 48; i += 1) image.data.set([...pixels.subarray(3 * i, 3 * i + 3), 255], 4 * i);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// The pixels of a picture of 48 x 48, red, green and blue after each other.
async function pixelsOf(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  const canvas = element("canvas", { width: 48, height: 48 });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, 48, 48);
  return Uint8Array.from({ length: 48 * 48 * 3 }, (_, i) => data[4 * Math.floor(i / 3) + (i % 3)]);
}
