// Runs behind engine.js in a worker, so that nothing it does stops the page. The page sends {id, task, ...}; the answer
// is {id, done}, and on the way {id, part}. A task of a kind is dropped when a later one of that kind has come.
let model = null;
const latest = {};

// 13 bits from two characters of 91 that a script may hold; see engine.py.
function fromText(text, length) {
  const places = new Uint8Array(128);
  for (let code = 33, place = 0; code < 127; code += 1) if (!"\"'\\".includes(String.fromCharCode(code))) places[code] = place++;
  const bytes = new Uint8Array(length);
  let [held, bits, at] = [0, 0, 0];
  for (let i = 0; i < text.length; i += 2) {
    held = (held << 13) | (places[text.charCodeAt(i)] * 91 + places[text.charCodeAt(i + 1)]);
    bits += 13;
    while (bits >= 8 && at < length) {
      bits -= 8;
      bytes[at++] = (held >> bits) & 255;
    }
    held &= (1 << bits) - 1;
  }
  return bytes;
}

// A float16 as a number.
const halves = (() => {
  const table = new Float32Array(65536);
  for (let code = 0; code < 65536; code += 1) {
    const [sign, exponent, mantissa] = [code >> 15 ? -1 : 1, (code >> 10) & 31, code & 1023];
    table[code] = sign * (exponent ? 2 ** (exponent - 15) * (1 + mantissa / 1024) : 2 ** -14 * (mantissa / 1024));
  }
  return table;
})();

async function unpack(pieces) {
  const compressed = new Blob(pieces.map((piece) => (Array.isArray(piece) ? fromText(piece[1], piece[0]) : piece)));
  const stream = compressed.stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const end = bytes.indexOf(10);
  const head = JSON.parse(new TextDecoder().decode(bytes.subarray(0, end)));
  const count = head.weights.reduce((sum, [, size]) => sum + size, 0);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i += 1) values[i] = halves[(bytes[end + 1 + i] << 8) | bytes[end + 1 + count + i]];
  const weights = {};
  let at = 0;
  for (const [name, size] of head.weights) weights[name] = values.subarray(at, (at += size));
  return new Miniature({ weights, words: head.words, merges: head.merges });
}

// Numbers that look random and are the same for the same seed (mulberry32); normal ones by Box and Muller.
function generator(seed) {
  const uniform = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return { uniform, normal };
}

// A projector that nobody has trained: torch's first weights of a linear layer, uniform up to 1 / √inputs.
function freshProjector(seed) {
  const { uniform } = generator(seed);
  const fresh = {};
  for (const layer of ["linear_1", "linear_2"]) {
    const name = `multi_modal_projector.${layer}`;
    const outputs = model.weights[`${name}.bias`].length;
    const most = 1 / Math.sqrt(model.weights[`${name}.weight`].length / outputs);
    for (const part of ["weight", "bias"]) {
      fresh[`${name}.${part}`] = model.weights[`${name}.${part}`].map(() => (2 * uniform() - 1) * most);
    }
  }
  return fresh;
}

const PROJECTORS = { trained: () => model.weights, fresh: () => freshProjector(7) };
const projectors = {}; // others, by name; see the task "projector"

const INPUTS = {
  black: () => new Uint8Array(SIDE * SIDE * 3),
  noise: (_, { uniform }) => Uint8Array.from({ length: SIDE * SIDE * 3 }, () => 256 * uniform()),
};

// The 36 tokens of one picture, as they enter the language model.
function tokensOf(pixels, number, { input, projector, gain }) {
  const random = generator(number + 1);
  const shown = INPUTS[input] ? INPUTS[input](pixels, random) : pixels;
  const tokens = model.project(model.encode(shown), projectors[projector] ?? PROJECTORS[projector]());
  if (input === "random") {
    // Gaussian directions, each with the length of the token in whose place it stands.
    const lengths = norms(tokens, model.d);
    for (let r = 0; r < IMAGE_TOKENS; r += 1) {
      const row = Float32Array.from({ length: model.d }, random.normal);
      const factor = lengths[r] / Math.hypot(...row);
      tokens.set(row.map((value) => value * factor), r * model.d);
    }
  }
  return tokens.map((value) => value * gain);
}

// The plane in which a layer is shown: the direction in which the means lie apart, and the one of widest spread beside it
// (by power iteration on the covariance within both clouds). Orthonormal.
function planeOf(vision, text, d) {
  const of = [vision, text].map((rows) => moments(rows, d, 1));
  const unit = (x) => {
    const length = Math.hypot(...x);
    return x.map((value) => value / length);
  };
  const apart = unit(of[0].mu.map((value, i) => value - of[1].mu[i]));
  let beside = Float64Array.from({ length: d }, (_, i) => (i % 3) - 1);
  for (let step = 0; step < 100; step += 1) {
    const along = beside.reduce((sum, value, i) => sum + value * apart[i], 0);
    beside = beside.map((value, i) => value - along * apart[i]);
    const next = new Float64Array(d);
    for (const { sigma } of of) {
      for (let i = 0; i < d; i += 1) for (let j = 0; j < d; j += 1) next[i] += sigma[i * d + j] * beside[j];
    }
    beside = unit(next);
  }
  const along = beside.reduce((sum, value, i) => sum + value * apart[i], 0);
  return [apart, unit(beside.map((value, i) => value - along * apart[i]))];
}

// Pairs of a scene's features, computed once, and the tokens of its caption; the same ones for the same number.
const pairs = [];
function trainingPair(number, world) {
  if (!pairs[number]) {
    const { uniform, normal } = generator(1000 + number);
    const { things, background } = sampleScene(uniform, world);
    const noise = Float32Array.from({ length: SIDE * SIDE }, normal);
    const features = model.encode(paint(things, background, noise, world));
    pairs[number] = { features, ids: captionIds(model, captionOf(things)) };
  }
  return pairs[number];
}

// What one picture and the text under it are, layer by layer; layer 0 is what enters the first.
function pairRows(pixels, number, text, settings) {
  const tokens = tokensOf(pixels, number, settings);
  const { vision, memory } = model.look(tokens);
  const words = model.embed(model.tokenize(` ${text}`));
  return { vision: [tokens, ...vision], text: [words, ...model.tell(text, memory)] };
}

// The rows of several pairs, one behind the other, in each layer of one side.
function joined(pairs, side) {
  return pairs[0][side].map((_, k) => {
    const parts = pairs.map((pair) => pair[side][k]);
    const all = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
    parts.reduce((at, part) => (all.set(part, at), at + part.length), 0);
    return all;
  });
}

// The pairs that stand beside the reader's own picture, by what they are: they are read once.
const companions = new Map();

// As numpy has it: between the two values that are nearest.
function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  const place = share * (sorted.length - 1);
  const low = Math.floor(place);
  return sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

let fixed = null; // the planes of the first clouds that were shown; all later ones are shown in them

const pause = () => new Promise((resolve) => setTimeout(resolve)); // lets messages in
const TASKS = {
  async load({ pieces }) {
    model = await unpack(pieces);
    return { layers: model.layers, d: model.d };
  },

  // Everything about some pictures with texts under them: MIR, its layers, norms, and points of both clouds in a plane.
  async measure({ pictures, texts, settings, planes }, send, current) {
    const pairs = [];
    for (let i = 0; i < pictures.length; i += 1) {
      pairs.push(pairRows(pictures[i], i, texts[i], settings));
      send((i + 1) / (pictures.length + 2));
      await pause();
      if (!current()) return null;
    }
    const rows = { vision: joined(pairs, "vision"), text: joined(pairs, "text") };
    const { value, layers } = modalityIntegrationRate(rows.vision.slice(1), rows.text.slice(1), model.d);
    await pause();
    if (planes === "fixed") planes = fixed ??= rows.vision.map((all, k) => planeOf(all, rows.text[k], model.d));
    const points = planes?.map(([x, y], k) =>
      Object.fromEntries(
        Object.entries(rows).map(([name, all]) => {
          const scale = 1 / mean(norms(rows.text[k], model.d));
          const shown = [];
          for (let r = 0; r < all[k].length / model.d; r += 1) {
            let [a, b] = [0, 0];
            for (let i = 0; i < model.d; i += 1) {
              a += x[i] * all[k][r * model.d + i];
              b += y[i] * all[k][r * model.d + i];
            }
            shown.push([a * scale, b * scale]);
          }
          return [name, shown];
        }),
      ),
    );
    const lengths = rows.vision.map((all, k) => mean(norms(all, model.d)) / mean(norms(rows.text[k], model.d)));
    return { value, layers, points, lengths };
  },

  // Another projector, its weights one behind the other, under a name that nobody has used.
  async projector({ name, values }) {
    projectors[name] = {};
    let at = 0;
    for (const layer of ["linear_1", "linear_2"]) {
      for (const part of ["weight", "bias"]) {
        const full = `multi_modal_projector.${layer}.${part}`;
        projectors[name][full] = values.subarray(at, (at += model.weights[full].length));
      }
    }
  },

  // Stage 1, for a minute: a fresh projector learns captions, a batch a step. The first weights and the scenes are always
  // the same, so that two runs differ by their settings alone. Every few steps, and at the end, MIR of `pictures` and
  // `texts` is measured, and the caption of the first picture is written.
  async train({ world, steps, batch, rate, warmup, every, pictures, texts, queue }, send, current) {
    const projector = freshProjector(7);
    const adam = new Adam(projector);
    projectors[queue] = projector;
    const settings = { input: "", projector: queue, gain: 1 };
    for (let step = 0; step <= steps; step += 1) {
      if (step % every === 0 || step === steps) {
        const found = await TASKS.measure({ pictures, texts, settings }, () => {}, current);
        if (!found) return;
        send({ step, mir: found.value, length: found.lengths[1], caption: model.say(tokensOf(pictures[0], 0, settings)) });
      }
      if (step === steps) return;
      const chosen = [];
      for (let i = 0; i < batch; i += 1) {
        chosen.push(trainingPair(step * batch + i, world));
        await pause();
        if (!current()) return;
      }
      const loss = trainingStep(model, adam, chosen, rate * rateShare(step, steps, warmup));
      send({ step: step + 1, loss });
    }
  },

  // Nothing: what it was sent for, in the queue of another task, is dropped.
  async stop() {},

  // What is said of a picture.
  async caption({ pixels, settings }, _, current) {
    await pause();
    return current() ? model.say(tokensOf(pixels, 0, settings)) : null;
  },

  // The likeliest answers to a question about a picture, and the probability of some words.
  async answer({ pixels, question, settings, words }, _, current) {
    await pause();
    if (!current()) return null;
    const shares = model.ask(question, model.look(tokensOf(pixels, 0, settings)).memory);
    return {
      likeliest: greatest(shares, 5).map(([id, share]) => [model.decode([id]).trim(), share]),
      probabilities: words.map((word) => shares[model.tokenize(` ${word}`)[0]]),
    };
  },

  // What each token of a picture costs to move onto the texts, layer by layer, among the pictures and texts beside it.
  // For each layer, and first for their sum: the distance, how dear 99 % of all tokens are at most, and, of the texts
  // beside it alone, the mean and 95 % quantile of what a word costs on its way onto other words.
  async map({ pixels, text, beside, settings }, send, current) {
    const steps = beside.texts.length + 2 * model.layers;
    const step = async (done) => {
      send(done / steps);
      await pause();
      return current();
    };
    const key = JSON.stringify([settings, beside.texts]);
    if (!companions.has(key)) companions.set(key, { pairs: [], words: [] });
    const { pairs, words } = companions.get(key);
    for (let i = pairs.length; i < beside.texts.length; i = pairs.length) {
      pairs.push(pairRows(beside.pictures[i], i + 1, beside.texts[i], settings));
      if (!(await step(i + 1))) return null;
    }
    const told = joined(pairs, "text");
    const samples = pairs.flatMap((pair, i) => Array(pair.text[0].length / model.d).fill(i));
    for (let k = words.length + 1; k <= model.layers; k = words.length + 1) {
      words.push(wordCosts(told[k], samples, model.d));
      if (!(await step(pairs.length + k))) return null;
    }
    const all = [pairRows(pixels, 0, text, settings), ...pairs];
    const rows = { vision: joined(all, "vision"), text: joined(all, "text") };
    const found = [];
    for (let k = 1; k <= model.layers; k += 1) {
      found.push(layerCosts(rows.vision[k], rows.text[k], model.d));
      if (!(await step(pairs.length + model.layers + k))) return null;
    }
    // In the sum a row pays nothing for a layer whose outlier it is; a word that pays in no layer is none of the even ones.
    const sum = (values) => values.reduce((total, value) => total + (value || 0), 0);
    const over = (layers) => layers[0].map((_, r) => (layers.every((costs) => Number.isNaN(costs[r])) ? NaN : sum(layers.map((costs) => costs[r]))));
    const level = (costs, own, more) => {
      const [seen, said] = [costs, own].map((values) => values.filter((value) => !Number.isNaN(value)));
      return { ...more, word: mean(said), high: quantile(said, 0.95), top: quantile(seen, 0.99) };
    };
    const costs = found.map((layer) => layer.costs);
    const distance = sum(found.map((layer) => layer.distance));
    return {
      costs: costs.map((layer) => Array.from(layer.subarray(0, IMAGE_TOKENS), (cost) => (Number.isNaN(cost) ? null : cost))),
      layers: [
        level(over(costs), over(words), { distance, kept: 0 }),
        ...found.map(({ costs: own, ...more }, k) => level(own, words[k], more)),
      ],
    };
  },

  // The words nearest to each token of a picture, in what enters layer 1 and after every layer.
  async lens({ pixels, settings, most }, send, current) {
    const tokens = tokensOf(pixels, 0, settings);
    const { vision, raw } = model.look(tokens);
    const layers = [];
    for (const states of [tokens, ...vision.slice(0, -1), raw]) {
      const named = (found) => found.map(([id, value]) => [model.word(id), value]);
      layers.push(model.nearest(states, most).map(({ output, input }) => ({ output: named(output), input: named(input) })));
      send(layers.length / (model.layers + 1));
      await pause();
      if (!current()) return null;
    }
    return layers;
  },

  // How texts fall into tokens.
  async tokenize({ texts }) {
    return texts.map((text) => model.tokenize(text));
  },
};

self.onmessage = async ({ data: { id, task, ...given } }) => {
  latest[given.queue ?? task] = id;
  try {
    const done = await TASKS[task](given, (part) => self.postMessage({ id, part }), () => latest[given.queue ?? task] === id);
    self.postMessage({ id, done });
  } catch (error) {
    self.postMessage({ id, error: String(error) });
  }
};
