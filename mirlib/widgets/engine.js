// The miniature LLaVA in plain JavaScript: picture -> encoder -> projector -> language model -> the next word, with the
// hidden states of every layer, and the Modality Integration Rate of them. No library, no network, no kernel.
//
// A matrix is a Float32Array in row-major order. `rows` is a number of tokens, `d` the width of a vector. Weights carry
// the names that they have in the model's own file, and each function names the layer of transformers that it repeats.

// --- Parts -----------------------------------------------------------------------------------------------------------

// y = x Wᵀ + b: rows x inputs times (outputs x inputs). Three rows and four outputs at a time, so that each number that
// is fetched is used more than once; where no third row is left, the last one is done again.
function linear(x, rows, weight, bias, outputs) {
  const inputs = weight.length / outputs;
  const y = new Float32Array(rows * outputs);
  for (let o = 0; o < outputs; o += 4) {
    const w0 = o * inputs;
    const w1 = w0 + inputs;
    const w2 = w1 + inputs;
    const w3 = w2 + inputs;
    for (let a = 0; a < rows; a += 3) {
      const b = Math.min(a + 1, rows - 1);
      const c = Math.min(a + 2, rows - 1);
      const xa = a * inputs;
      const xb = b * inputs;
      const xc = c * inputs;
      let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0, c0 = 0, c1 = 0, c2 = 0, c3 = 0;
      for (let i = 0; i < inputs; i += 1) {
        const va = x[xa + i];
        const vb = x[xb + i];
        const vc = x[xc + i];
        let w = weight[w0 + i];
        a0 += va * w;
        b0 += vb * w;
        c0 += vc * w;
        w = weight[w1 + i];
        a1 += va * w;
        b1 += vb * w;
        c1 += vc * w;
        w = weight[w2 + i];
        a2 += va * w;
        b2 += vb * w;
        c2 += vc * w;
        w = weight[w3 + i];
        a3 += va * w;
        b3 += vb * w;
        c3 += vc * w;
      }
      const ya = a * outputs + o;
      const yb = b * outputs + o;
      const yc = c * outputs + o;
      y[ya] = a0;
      y[ya + 1] = a1;
      y[ya + 2] = a2;
      y[ya + 3] = a3;
      y[yb] = b0;
      y[yb + 1] = b1;
      y[yb + 2] = b2;
      y[yb + 3] = b3;
      y[yc] = c0;
      y[yc + 1] = c1;
      y[yc + 2] = c2;
      y[yc + 3] = c3;
    }
  }
  if (bias) for (let i = 0; i < y.length; i += 1) y[i] += bias[i % outputs];
  return y;
}

// LayerNorm: each row with mean 0 and standard deviation 1, then scaled and shifted.
function layerNorm(x, rows, weight, bias, epsilon = 1e-5) {
  const d = weight.length;
  const y = new Float32Array(x.length);
  for (let r = 0; r < rows; r += 1) {
    const row = x.subarray(r * d, (r + 1) * d);
    let [mean, square] = [0, 0];
    for (const value of row) mean += value / d;
    for (const value of row) square += (value - mean) ** 2 / d;
    const scale = 1 / Math.sqrt(square + epsilon);
    for (let i = 0; i < d; i += 1) y[r * d + i] = (row[i] - mean) * scale * weight[i] + bias[i];
  }
  return y;
}

// RMSNorm: each row divided by its root mean square, then scaled.
function rmsNorm(x, rows, weight, epsilon = 1e-6) {
  const d = weight.length;
  const y = new Float32Array(x.length);
  for (let r = 0; r < rows; r += 1) {
    let square = 0;
    for (let i = r * d; i < (r + 1) * d; i += 1) square += (x[i] * x[i]) / d;
    const scale = 1 / Math.sqrt(square + epsilon);
    for (let i = 0; i < d; i += 1) y[r * d + i] = x[r * d + i] * scale * weight[i];
  }
  return y;
}

// erf to 1e-15: by its series where x is small, by a continued fraction where it is not.
function erf(x) {
  const size = Math.abs(x);
  if (size > 6) return Math.sign(x);
  if (size < 2.5) {
    let [term, sum] = [size, size];
    for (let n = 1; term > 1e-17 * sum; n += 1) {
      term *= (2 * size * size) / (2 * n + 1);
      sum += term;
    }
    return Math.sign(x) * (2 / Math.sqrt(Math.PI)) * Math.exp(-size * size) * sum;
  }
  let fraction = size;
  for (let n = 60; n > 0; n -= 1) fraction = size + n / 2 / fraction;
  return Math.sign(x) * (1 - Math.exp(-size * size) / (Math.sqrt(Math.PI) * fraction));
}

const gelu = (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2));
const silu = (x) => x / (1 + Math.exp(-x));

function softmax(logits) {
  let most = -Infinity;
  for (const logit of logits) most = Math.max(most, logit);
  let sum = 0;
  const shares = new Float64Array(logits.length);
  logits.forEach((logit, i) => (sum += shares[i] = Math.exp(logit - most)));
  return shares.map((share) => share / sum);
}

// The greatest values with their places, greatest first.
function greatest(values, most) {
  const found = [];
  values.forEach((value, place) => {
    if (found.length === most && value <= found[most - 1][1]) return;
    let at = found.length;
    while (at > 0 && found[at - 1][1] < value) at -= 1;
    found.splice(at, 0, [place, value]);
    found.length = Math.min(found.length, most);
  });
  return found;
}

function add(x, y) {
  for (let i = 0; i < x.length; i += 1) x[i] += y[i];
}

// Attention of `rows` queries over `seen` keys and values, head by head. Causal: query r may look at the keys up to its
// own place, which is seen - rows + r.
function attend(q, k, v, rows, seen, heads, causal) {
  const d = q.length / rows;
  const width = d / heads;
  const out = new Float32Array(q.length);
  const scores = new Float64Array(seen);
  for (let h = 0; h < heads; h += 1) {
    for (let r = 0; r < rows; r += 1) {
      const last = causal ? seen - rows + r + 1 : seen;
      let most = -Infinity;
      for (let j = 0; j < last; j += 1) {
        let score = 0;
        for (let i = h * width; i < (h + 1) * width; i += 1) score += q[r * d + i] * k[j * d + i];
        scores[j] = score / Math.sqrt(width);
        most = Math.max(most, scores[j]);
      }
      let sum = 0;
      for (let j = 0; j < last; j += 1) sum += scores[j] = Math.exp(scores[j] - most);
      for (let j = 0; j < last; j += 1) {
        const share = scores[j] / sum;
        for (let i = h * width; i < (h + 1) * width; i += 1) out[r * d + i] += share * v[j * d + i];
      }
    }
  }
  return out;
}

// Rotary position embedding, in place: each pair (i, i + width / 2) of a head turns by place / 10000^(2i / width), or with
// way = -1 back.
function rotate(x, rows, heads, first, way = 1) {
  const d = x.length / rows;
  const width = d / heads;
  const half = width / 2;
  for (let r = 0; r < rows; r += 1) {
    for (let i = 0; i < half; i += 1) {
      const angle = (way * (first + r)) / 10000 ** (i / half);
      const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      for (let h = 0; h < heads; h += 1) {
        const a = r * d + h * width + i;
        const [low, high] = [x[a], x[a + half]];
        x[a] = low * cos - high * sin;
        x[a + half] = high * cos + low * sin;
      }
    }
  }
}

// --- The model -------------------------------------------------------------------------------------------------------

const SIDE = 48; // pixels of a picture's side
const PATCH = 8;
const IMAGE_TOKENS = (SIDE / PATCH) ** 2; // 36
const HEADS = 4;
const [BOS, EOS] = [0, 1];

export class Miniature {
  // weights: {name: Float32Array}; words: the tokens by id; merges: BPE's merges, best first.
  constructor({ weights, words, merges }) {
    Object.assign(this, { weights, words });
    this.ids = new Map(words.map((word, id) => [word, id]));
    this.ranks = new Map(merges.map((merge, rank) => [merge, rank]));
    this.embeddings = weights["language_model.model.embed_tokens.weight"];
    this.d = weights["language_model.model.norm.weight"].length;
    this.layers = 0;
    while (`language_model.model.layers.${this.layers}.input_layernorm.weight` in weights) this.layers += 1;
  }

  // CLIPVisionModel up to the last layer but one, without [CLS]. pixels: 48 x 48 x 3 numbers from 0 to 255. 36 x 96.
  encode(pixels) {
    const w = (name) => this.weights[`vision_tower.${name}`];
    const across = SIDE / PATCH;
    const patches = new Float32Array(IMAGE_TOKENS * 3 * PATCH * PATCH);
    for (let p = 0; p < IMAGE_TOKENS; p += 1) {
      const [top, left] = [Math.floor(p / across) * PATCH, (p % across) * PATCH];
      for (let c = 0; c < 3; c += 1) {
        for (let y = 0; y < PATCH; y += 1) {
          for (let x = 0; x < PATCH; x += 1) {
            const value = pixels[((top + y) * SIDE + left + x) * 3 + c];
            patches[((p * 3 + c) * PATCH + y) * PATCH + x] = value / 127.5 - 1;
          }
        }
      }
    }
    const first = w("embeddings.class_embedding");
    const rows = IMAGE_TOKENS + 1;
    let x = new Float32Array(rows * first.length);
    x.set(first);
    x.set(linear(patches, IMAGE_TOKENS, w("embeddings.patch_embedding.weight"), null, first.length), first.length);
    add(x, w("embeddings.position_embedding.weight"));
    x = layerNorm(x, rows, w("pre_layrnorm.weight"), w("pre_layrnorm.bias"));
    for (let k = 0; w(`encoder.layers.${k}.layer_norm1.weight`); k += 1) {
      const of = (name) => w(`encoder.layers.${k}.${name}`);
      const apply = (name, input) => linear(input, rows, of(`${name}.weight`), of(`${name}.bias`), of(`${name}.bias`).length);
      const read = layerNorm(x, rows, of("layer_norm1.weight"), of("layer_norm1.bias"));
      const [q, k_, v] = ["q", "k", "v"].map((name) => apply(`self_attn.${name}_proj`, read));
      add(x, apply("self_attn.out_proj", attend(q, k_, v, rows, rows, HEADS, false)));
      const inner = apply("mlp.fc1", layerNorm(x, rows, of("layer_norm2.weight"), of("layer_norm2.bias")));
      add(x, apply("mlp.fc2", inner.map(gelu)));
    }
    return x.slice(first.length);
  }

  // LlavaMultiModalProjector: 36 x 96 features to 36 x d tokens. Another projector may be handed in.
  project(features, projector = this.weights) {
    const w = (name) => projector[`multi_modal_projector.${name}`];
    const rows = features.length / (w("linear_1.weight").length / this.d);
    const inner = linear(features, rows, w("linear_1.weight"), w("linear_1.bias"), this.d).map(gelu);
    return linear(inner, rows, w("linear_2.weight"), w("linear_2.bias"), this.d);
  }

  // Embeddings of tokens, n x d.
  embed(ids) {
    const x = new Float32Array(ids.length * this.d);
    ids.forEach((id, i) => x.set(this.embeddings.subarray(id * this.d, (id + 1) * this.d), i * this.d));
    return x;
  }

  // LlamaModel on `rows` more tokens behind those of a memory. Returns what each layer hands on, the last one behind
  // the final norm as transformers has it and `raw` without it, and the memory of keys and values with these tokens in it.
  // A tape, a list, takes down what the way back through the layers needs; see engine_training.js.
  read(x, memory = null, tape = null) {
    const rows = x.length / this.d;
    const before = memory ? memory.length : 0;
    const grown = { length: before + rows, keys: [], values: [] };
    const states = [];
    let state = Float32Array.from(x);
    for (let k = 0; k < this.layers; k += 1) {
      const of = (name) => this.weights[`language_model.model.layers.${k}.${name}.weight`];
      const apply = (name, input, outputs) => linear(input, rows, of(name), null, outputs);
      const noted = tape && { state: Float32Array.from(state) };
      const input = rmsNorm(state, rows, of("input_layernorm"));
      const [q, key, value] = ["q", "k", "v"].map((name) => apply(`self_attn.${name}_proj`, input, this.d));
      rotate(q, rows, HEADS, before);
      rotate(key, rows, HEADS, before);
      const joined = (past, now) => {
        const all = new Float32Array(grown.length * this.d);
        if (past) all.set(past);
        all.set(now, before * this.d);
        return all;
      };
      grown.keys.push(joined(memory?.keys[k], key));
      grown.values.push(joined(memory?.values[k], value));
      const seen = attend(q, grown.keys[k], grown.values[k], rows, grown.length, HEADS, true);
      add(state, apply("self_attn.o_proj", seen, this.d));
      if (tape) noted.middle = Float32Array.from(state);
      const inner = rmsNorm(state, rows, of("post_attention_layernorm"));
      const width = of("mlp.up_proj").length / this.d;
      const gate = apply("mlp.gate_proj", inner, width);
      const up = apply("mlp.up_proj", inner, width);
      tape?.push({ ...noted, q, key, value, gate, up: Float32Array.from(up) });
      for (let i = 0; i < up.length; i += 1) up[i] *= silu(gate[i]);
      add(state, apply("mlp.down_proj", up, this.d));
      states.push(Float32Array.from(state));
    }
    tape?.push({ state });
    states[this.layers - 1] = rmsNorm(state, rows, this.weights["language_model.model.norm.weight"]);
    return { states, raw: state, memory: grown };
  }

  // Probabilities of the next word behind one normed row: the output layer is the table of embeddings.
  next(row) {
    return softmax(linear(row, 1, this.embeddings, null, this.words.length));
  }

  // The lens: the words nearest to each row, as [id, value], nearest first. `output`: the most probable ones if the row
  // had come out of the last layer, through its norm. `input`: those whose embeddings have the greatest cosine with it.
  nearest(x, most = 5) {
    const rows = x.length / this.d;
    const count = this.words.length;
    this.lengths ??= norms(this.embeddings, this.d);
    const normed = rmsNorm(x, rows, this.weights["language_model.model.norm.weight"]);
    const logits = linear(normed, rows, this.embeddings, null, count);
    const products = linear(x, rows, this.embeddings, null, count);
    const own = norms(x, this.d);
    return Array.from(own, (length, r) => {
      const of = (values) => values.subarray(r * count, (r + 1) * count);
      const cosines = Float64Array.from(of(products), (value, id) => value / (this.lengths[id] * length || 1));
      return { output: greatest(softmax(of(logits)), most), input: greatest(cosines, most) };
    });
  }

  // One token as a reader sees it.
  word(id) {
    return id > 3 ? this.decode([id]) : this.words[id];
  }

  // Byte-level byte-pair encoding. Words are cut as GPT-2's tokenizer cuts them, and merged best pair first.
  tokenize(text) {
    const ids = [];
    for (const [piece] of text.matchAll(/'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu)) {
      const parts = Array.from(new TextEncoder().encode(piece), (byte) => BYTES[byte]);
      for (;;) {
        let [best, at] = [Infinity, -1];
        for (let i = 0; i + 1 < parts.length; i += 1) {
          const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`);
          if (rank < best) [best, at] = [rank, i];
        }
        if (at < 0) break;
        parts.splice(at, 2, parts[at] + parts[at + 1]);
      }
      ids.push(...parts.map((part) => this.ids.get(part)));
    }
    return ids;
  }

  // The text of tokens.
  decode(ids) {
    const bytes = ids.filter((id) => id > 3).flatMap((id) => Array.from(this.words[id], (letter) => LETTERS.get(letter)));
    return new TextDecoder().decode(Uint8Array.from(bytes));
  }

  // A picture's part of a prompt, "<s>USER:" or "<s>" alone and its 36 tokens: the states of the tokens, and what text
  // can look at.
  look(tokens, prompt = "USER:") {
    const before = this.embed([BOS, ...this.tokenize(prompt)]);
    const x = new Float32Array(before.length + tokens.length);
    x.set(before);
    x.set(tokens, before.length);
    const { states, raw, memory } = this.read(x);
    return { vision: states.map((state) => state.slice(before.length)), raw: raw.slice(before.length), memory };
  }

  // A text as an assistant would have said it under a picture: the states of its own tokens, without the frame.
  tell(text, memory) {
    const frame = this.tokenize("\n ASSISTANT:");
    const own = this.tokenize(` ${text}`);
    const { states } = this.read(this.embed([...frame, ...own]), memory);
    return states.map((state) => state.slice(frame.length * this.d));
  }

  // A question under a picture. Probabilities of every word of the vocabulary as its answer.
  ask(question, memory) {
    const prompt = this.tokenize("\n");
    prompt.push(...this.tokenize(` ${question}`), ...this.tokenize(" ASSISTANT:"));
    const { states } = this.read(this.embed(prompt), memory);
    return this.next(states[this.layers - 1].slice(-this.d));
  }

  // The caption of a picture, word by word, each the likeliest one; in stage 1 a picture stood behind "<s>" alone.
  say(tokens, most = 24) {
    const ids = [];
    let { states, memory: now } = this.read(this.embed(this.tokenize("\n")), this.look(tokens, "").memory);
    while (ids.length < most) {
      const shares = this.next(states[this.layers - 1].slice(-this.d));
      const id = shares.indexOf(Math.max(...shares));
      if (id === EOS) break;
      ids.push(id);
      ({ states, memory: now } = this.read(this.embed([id]), now));
    }
    return this.decode(ids).trim();
  }
}

// GPT-2's letters for bytes: those that print stand for themselves, the others for letters from 256 on.
const BYTES = [];
for (let byte = 0, more = 256; byte < 256; byte += 1) {
  const prints = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  BYTES.push(String.fromCharCode(prints ? byte : more++));
}
const LETTERS = new Map(BYTES.map((letter, byte) => [letter, byte]));

// --- The measure -----------------------------------------------------------------------------------------------------

// Norms of rows.
export function norms(x, d) {
  const found = new Float64Array(x.length / d);
  for (let r = 0; r < found.length; r += 1) {
    let square = 0;
    for (let i = r * d; i < (r + 1) * d; i += 1) square += x[i] * x[i];
    found[r] = Math.sqrt(square);
  }
  return found;
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// The numbers of the rows whose norm lies within three standard deviations of the (lower) median.
function keptRows(x, d) {
  const length = norms(x, d).map(Math.fround);
  const centre = [...length].sort((a, b) => a - b)[Math.floor((length.length - 1) / 2)];
  const middle = mean(length);
  const reach = 3 * Math.sqrt(length.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (length.length - 1));
  return [...length.keys()].filter((r) => length.length < 2 || Math.abs(length[r] - centre) <= reach);
}

function take(x, d, chosen) {
  if (chosen.length === x.length / d) return x;
  const y = new Float32Array(chosen.length * d);
  chosen.forEach((from, to) => y.set(x.subarray(from * d, (from + 1) * d), to * d));
  return y;
}

const withoutOutliers = (x, d) => take(x, d, keptRows(x, d));

// Mean, and covariance with divisor n - 1, of rows times a factor.
function moments(x, d, factor) {
  const n = x.length / d;
  const mu = new Float64Array(d);
  for (let r = 0; r < n; r += 1) for (let i = 0; i < d; i += 1) mu[i] += (factor * x[r * d + i]) / n;
  const sigma = new Float64Array(d * d);
  const row = new Float64Array(d);
  for (let r = 0; r < n; r += 1) {
    for (let i = 0; i < d; i += 1) row[i] = factor * x[r * d + i] - mu[i];
    for (let i = 0; i < d; i += 1) {
      const value = row[i] / (n - 1);
      for (let j = 0; j <= i; j += 1) sigma[i * d + j] += value * row[j];
    }
  }
  for (let i = 0; i < d; i += 1) for (let j = 0; j < i; j += 1) sigma[j * d + i] = sigma[i * d + j];
  return { n, mu, sigma, trace: mean(sigma.filter((_, i) => i % (d + 1) === 0)) * d };
}

// L with L Lᵀ = sigma (Cholesky), for a matrix that may be singular: a pivot that is nothing but rounding gives a
// column of zeros.
function cholesky(sigma, d) {
  const l = Float64Array.from(sigma);
  const nothing = 1e-13 * d * Math.max(...sigma.filter((_, i) => i % (d + 1) === 0));
  for (let j = 0; j < d; j += 1) {
    for (let i = 0; i < j; i += 1) l[i * d + j] = 0;
    for (let i = j; i < d; i += 1) {
      let sum = sigma[i * d + j];
      for (let k = 0; k < j; k += 1) sum -= l[i * d + k] * l[j * d + k];
      if (i === j) l[j * d + j] = sum > nothing ? Math.sqrt(sum) : 0;
      else l[i * d + j] = l[j * d + j] ? sum / l[j * d + j] : 0;
    }
  }
  return l;
}

// Eigenvalues of a symmetric matrix: Householder's reflections make it tridiagonal, the QL algorithm with implicit
// shifts does the rest. The matrix is overwritten. If `vectors`, d x d, are handed in, their rows become the eigenvectors.
export function eigenvalues(a, d, vectors = null) {
  const diagonal = new Float64Array(d);
  const beside = new Float64Array(d);
  const lengths = new Float64Array(d); // of the reflections, whose directions stay in the lower half of the matrix
  if (vectors) for (let i = 0; i < d * d; i += 1) vectors[i] = i % (d + 1) === 0 ? 1 : 0;
  for (let i = d - 1; i > 0; i -= 1) {
    let [scale, h] = [0, 0];
    for (let k = 0; k < i; k += 1) scale += Math.abs(a[i * d + k]);
    if (i === 1 || scale === 0) {
      beside[i] = a[i * d + i - 1];
      diagonal[i] = a[i * d + i];
      continue;
    }
    for (let k = 0; k < i; k += 1) {
      a[i * d + k] /= scale;
      h += a[i * d + k] ** 2;
    }
    const f = a[i * d + i - 1];
    const g = f >= 0 ? -Math.sqrt(h) : Math.sqrt(h);
    beside[i] = scale * g;
    h -= f * g;
    lengths[i] = h;
    a[i * d + i - 1] = f - g;
    let sum = 0;
    for (let j = 0; j < i; j += 1) {
      let product = 0;
      for (let k = 0; k <= j; k += 1) product += a[j * d + k] * a[i * d + k];
      for (let k = j + 1; k < i; k += 1) product += a[k * d + j] * a[i * d + k];
      beside[j] = product / h;
      sum += beside[j] * a[i * d + j];
    }
    const half = sum / (h + h);
    for (let j = 0; j < i; j += 1) {
      const u = a[i * d + j];
      const p = (beside[j] -= half * u);
      for (let k = 0; k <= j; k += 1) a[j * d + k] -= u * beside[k] + p * a[i * d + k];
    }
    diagonal[i] = a[i * d + i];
  }
  diagonal[0] = a[0];
  for (let i = 1; i < d; i += 1) beside[i - 1] = beside[i];
  beside[d - 1] = 0;
  for (let l = 0; l < d; l += 1) {
    for (;;) {
      let m = l;
      for (; m < d - 1; m += 1) {
        const size = Math.abs(diagonal[m]) + Math.abs(diagonal[m + 1]);
        if (Math.abs(beside[m]) <= Number.EPSILON * size) break;
      }
      if (m === l) break;
      let g = (diagonal[l + 1] - diagonal[l]) / (2 * beside[l]);
      let r = Math.hypot(g, 1);
      g = diagonal[m] - diagonal[l] + beside[l] / (g + (g >= 0 ? r : -r));
      let [s, c, p] = [1, 1, 0];
      let i = m - 1;
      for (; i >= l; i -= 1) {
        const f = s * beside[i];
        const b = c * beside[i];
        r = Math.hypot(f, g);
        beside[i + 1] = r;
        if (r === 0) {
          diagonal[i + 1] -= p;
          beside[m] = 0;
          break;
        }
        s = f / r;
        c = g / r;
        g = diagonal[i + 1] - p;
        r = (diagonal[i] - g) * s + 2 * c * b;
        p = s * r;
        diagonal[i + 1] = g + p;
        g = c * r - b;
        if (!vectors) continue;
        for (let k = i * d; k < (i + 1) * d; k += 1) {
          const [low, high] = [vectors[k], vectors[k + d]];
          vectors[k] = c * low - s * high;
          vectors[k + d] = s * low + c * high;
        }
      }
      if (r === 0 && i >= l) continue;
      diagonal[l] -= p;
      beside[l] = g;
      beside[m] = 0;
    }
  }
  if (!vectors) return diagonal;
  // What was turned were the eigenvectors of the tridiagonal matrix: the reflections carry them back.
  for (let row = 0; row < d * d; row += d) {
    for (let i = 2; i < d; i += 1) {
      if (lengths[i] === 0) continue;
      let along = 0;
      for (let k = 0; k < i; k += 1) along += a[i * d + k] * vectors[row + k];
      along /= lengths[i];
      for (let k = 0; k < i; k += 1) vectors[row + k] -= along * a[i * d + k];
    }
  }
  return diagonal;
}

// The squared Fréchet distance of two clouds of rows, each times a factor: |mu_v - mu_t|² + Tr(S_v + S_t - 2 (S_v S_t)^½).
// With S_t = L Lᵀ the eigenvalues of S_v S_t are those of the symmetric Lᵀ S_v L, so nothing is iterated but these.
export function frechet(vision, text, d, factor = 1) {
  const [v, t] = [moments(vision, d, factor), moments(text, d, factor)];
  const l = cholesky(t.sigma, d);
  const half = new Float64Array(d * d); // S_v L
  for (let i = 0; i < d; i += 1) {
    for (let k = 0; k < d; k += 1) {
      const value = v.sigma[i * d + k];
      for (let j = 0; j <= k; j += 1) half[i * d + j] += value * l[k * d + j];
    }
  }
  const product = new Float64Array(d * d); // Lᵀ S_v L, lower half
  for (let k = 0; k < d; k += 1) {
    for (let i = 0; i <= k; i += 1) {
      const value = l[k * d + i];
      for (let j = 0; j <= i; j += 1) product[i * d + j] += value * half[k * d + j];
    }
  }
  const root = eigenvalues(product, d).reduce((sum, value) => sum + Math.sqrt(Math.max(value, 0)), 0);
  const shift = v.mu.reduce((sum, value, i) => sum + (value - t.mu[i]) ** 2, 0);
  return { mean: shift, covariance: Math.max(v.trace + t.trace - 2 * root, 0) };
}

// MIR of rows, layer by layer: vision and text are lists of arrays, a layer each. log10 of the sum of the layers'
// distances, in units of the mean norm of each layer's text, without the rows that are outliers by their norm.
export function modalityIntegrationRate(vision, text, d) {
  const layers = vision.map((rows, k) => {
    const factor = 1 / mean(norms(text[k], d));
    const found = frechet(withoutOutliers(rows, d), withoutOutliers(text[k], d), d, factor);
    return { ...found, total: found.mean + found.covariance };
  });
  return { layers, value: Math.log10(layers.reduce((sum, layer) => sum + layer.total, 0)) };
}

// --- The optimal map ---------------------------------------------------------------------------------------------------

// The cheapest way to move one cloud (its moments) onto another, if both were normal: x goes to mu_y + T (x - mu_x) with
// T = F⁺ᵀ (Fᵀ S_y F)^½ F⁺ and S_x = F Fᵀ. F has the eigenvectors of S_x that are more than rounding, times the roots of their
// eigenvalues. The rows of `whiten` are F⁺, those of `turn` the eigenvectors in the middle, and `roots` theirs.
export function optimalMap(own, other, d) {
  const vectors = new Float64Array(d * d);
  const spread = eigenvalues(Float64Array.from(own.sigma), d, vectors);
  const nothing = Math.max(...spread) * d * Number.EPSILON;
  const found = [...spread.keys()].filter((k) => spread[k] > nothing);
  const rank = found.length;
  const [factor, whiten] = [new Float64Array(rank * d), new Float64Array(rank * d)];
  found.forEach((from, k) => {
    const root = Math.sqrt(spread[from]);
    for (let i = 0; i < d; i += 1) {
      factor[k * d + i] = vectors[from * d + i] * root;
      whiten[k * d + i] = vectors[from * d + i] / root;
    }
  });
  const dot = (x, k, y, j) => {
    let sum = 0;
    for (let i = 0; i < d; i += 1) sum += x[k * d + i] * y[j * d + i];
    return sum;
  };
  const reached = new Float64Array(rank * d); // Fᵀ S_y
  for (let k = 0; k < rank; k += 1) for (let i = 0; i < d; i += 1) reached[k * d + i] = dot(factor, k, other.sigma, i);
  const middle = new Float64Array(rank * rank);
  for (let k = 0; k < rank; k += 1) {
    for (let j = 0; j <= k; j += 1) middle[k * rank + j] = middle[j * rank + k] = dot(reached, k, factor, j);
  }
  const turn = new Float64Array(rank * rank);
  const roots = eigenvalues(middle, rank, turn).map((value) => Math.sqrt(Math.max(value, 0)));
  const trace = roots.reduce((sum, root) => sum + root, 0);
  const shift = own.mu.reduce((sum, value, i) => sum + (value - other.mu[i]) ** 2, 0);
  const map = { rank, whiten, turn, roots, distance: shift + Math.max(own.trace + other.trace - 2 * trace, 0) };
  // Spread of the other cloud in directions in which this one has none: no row reaches it.
  map.unreached = rank === d ? 0 : Math.max(other.trace - reachedTrace(map, d), 0);
  return map;
}

// x -> F⁺ᵀ W (roots · Wᵀ (F⁺ x)): T applied to a centred row.
function moved(x, { rank, whiten, turn, roots }, d) {
  const white = new Float64Array(rank);
  for (let k = 0; k < rank; k += 1) for (let i = 0; i < d; i += 1) white[k] += whiten[k * d + i] * x[i];
  const stretched = new Float64Array(rank);
  for (let j = 0; j < rank; j += 1) {
    let along = 0;
    for (let k = 0; k < rank; k += 1) along += turn[j * rank + k] * white[k];
    along *= roots[j];
    for (let k = 0; k < rank; k += 1) stretched[k] += along * turn[j * rank + k];
  }
  const y = new Float64Array(d);
  for (let k = 0; k < rank; k += 1) for (let i = 0; i < d; i += 1) y[i] += whiten[k * d + i] * stretched[k];
  return y;
}

// The trace of T S_x T, the spread that arrives.
function reachedTrace({ rank, whiten, turn, roots }, d) {
  let trace = 0;
  const along = new Float64Array(d);
  for (let j = 0; j < rank; j += 1) {
    along.fill(0);
    for (let k = 0; k < rank; k += 1) for (let i = 0; i < d; i += 1) along[i] += turn[j * rank + k] * whiten[k * d + i];
    for (let i = 0; i < d; i += 1) trace += (roots[j] * along[i]) ** 2;
  }
  return trace;
}

// What each row, times a factor, pays: the squared way that it goes when its cloud is moved onto the other one. The mean
// over all rows of the cloud, plus what is unreached, is the squared Fréchet distance.
export function rowCosts(x, d, factor, own, other, map) {
  const wide = Math.sqrt(own.n / (own.n - 1)); // the covariance has the divisor n - 1
  const costs = new Float64Array(x.length / d);
  const centred = new Float64Array(d);
  for (let r = 0; r < costs.length; r += 1) {
    for (let i = 0; i < d; i += 1) centred[i] = factor * x[r * d + i] - own.mu[i];
    const goal = moved(centred, map, d);
    for (let i = 0; i < d; i += 1) costs[r] += (own.mu[i] - other.mu[i] + wide * (centred[i] - goal[i])) ** 2;
  }
  return costs;
}

// The costs of all vision rows of one layer, in squared mean norms of its text: NaN for those whose norm is an outlier.
export function layerCosts(vision, text, d) {
  const factor = 1 / mean(norms(text, d));
  const kept = keptRows(vision, d);
  const rows = take(vision, d, kept);
  const [own, other] = [moments(rows, d, factor), moments(withoutOutliers(text, d), d, factor)];
  const map = optimalMap(own, other, d);
  const costs = new Float64Array(vision.length / d).fill(NaN);
  rowCosts(rows, d, factor, own, other, map).forEach((cost, i) => (costs[kept[i]] = cost));
  return { costs, kept: kept.length, distance: map.distance, unreached: map.unreached };
}

// What words cost on their way onto other words, in the same unit: a measure of what is much. `samples` say which text a
// row belongs to; the texts 0, 2, ... are moved onto the texts 1, 3, ... NaN for these, and for outliers.
export function wordCosts(text, samples, d) {
  const factor = 1 / mean(norms(text, d));
  const told = keptRows(text, d);
  const [even, odd] = [0, 1].map((half) => told.filter((r) => samples[r] % 2 === half));
  const rows = take(text, d, even);
  const [own, other] = [moments(rows, d, factor), moments(take(text, d, odd), d, factor)];
  const costs = new Float64Array(text.length / d).fill(NaN);
  rowCosts(rows, d, factor, own, other, optimalMap(own, other, d)).forEach((cost, i) => (costs[even[i]] = cost));
  return costs;
}
