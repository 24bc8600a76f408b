// The world of coloured shapes, as mirlab/world/scenes.py has it: scenes, their pictures and their captions. A page draws
// with it, and so does the worker. A `world` comes from Python: see `mirlab.live.drawing`.
const CELLS = ["topleft", "topright", "bottomleft", "bottomright"];
const [PICTURE, CELL, SAMPLES] = [48, 24, 4]; // pixels of a picture's side, of a cell's side, and samples a pixel
const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

// How much of each pixel a form covers: 4 x 4 samples a pixel. Digits are handwritings, brought along by the page.
function sprite(shape_, size, world) {
  const radius = world.sizes[size];
  const side = 2 * radius + 1;
  const coverage = new Float32Array(side * side);
  if (world.digits?.[shape_]) {
    const scan = bytesOf(world.digits[shape_][size]);
    return coverage.map((_, i) => Math.min(Math.fround(scan[i] / 200), 1));
  }
  const inside = {
    circle: (x, y) => Math.hypot(x, y) <= 1,
    ring: (x, y) => Math.hypot(x, y) <= 1 && Math.hypot(x, y) >= 0.55,
    square: (x, y) => Math.max(Math.abs(x), Math.abs(y)) <= 0.87,
    triangle: (x, y) => y <= 0.87 && Math.abs(x) <= (y + 1) * 0.55,
    cross: (x, y) => Math.min(Math.abs(x), Math.abs(y)) <= 0.3 && Math.max(Math.abs(x), Math.abs(y)) <= 1,
  }[shape_];
  const at = (i) => ((i + 0.5) / SAMPLES - side / 2) / radius;
  for (let i = 0; i < side * SAMPLES; i += 1) {
    for (let j = 0; j < side * SAMPLES; j += 1) {
      const pixel = Math.floor(i / SAMPLES) * side + Math.floor(j / SAMPLES);
      if (inside(at(j), at(i))) coverage[pixel] += 1 / SAMPLES ** 2;
    }
  }
  return coverage;
}

// Pixels of a scene, 48 x 48 x 3. Noise: a normal number for each pixel.
export function paint(things, background, noise, world) {
  const canvas = new Float32Array(PICTURE * PICTURE * 3).fill(background);
  for (const thing of things) {
    const radius = world.sizes[thing.size];
    const cell = CELLS.indexOf(thing.cell);
    const left = (cell % 2) * CELL + CELL / 2 + thing.right - radius;
    const top = Math.floor(cell / 2) * CELL + CELL / 2 + thing.down - radius;
    const coverage = sprite(thing.shape, thing.size, world);
    const side = 2 * radius + 1;
    coverage.forEach((share, i) => {
      for (let c = 0; c < 3; c += 1) {
        const place = ((top + Math.floor(i / side)) * PICTURE + left + (i % side)) * 3 + c;
        const step = Math.fround(world.colours[thing.colour][c] - canvas[place]);
        canvas[place] += Math.fround(share * step);
      }
    });
  }
  return Uint8Array.from(canvas, (value, i) => {
    const noisy = Math.fround(value + Math.fround(10 * noise[Math.floor(i / 3)]));
    return Math.max(0, Math.min(255, noisy));
  });
}

// What a full caption says.
export const captionOf = (things) => things.map((t) => `${t.cell} ${t.shape} ${t.size} ${t.colour} .`).join(" ");

// A scene of one to four shapes, in reading order. `uniform` gives numbers between 0 and 1.
export function sampleScene(uniform, world) {
  const below = (n) => Math.floor(n * uniform());
  const one = (words) => words[below(words.length)];
  const free = [...CELLS.keys()];
  const taken = Array.from({ length: 1 + below(CELLS.length) }, () => free.splice(below(free.length), 1)[0]);
  const things = taken.sort().map((cell) => {
    const size = one(Object.keys(world.sizes));
    const slack = CELL / 2 - world.sizes[size] - 1;
    const [right, down] = [0, 0].map(() => below(2 * slack + 1) - slack);
    return { cell: CELLS[cell], shape: one(world.shapes), size, colour: one(Object.keys(world.colours)), right, down };
  });
  return { things, background: 70 + below(80) };
}
