// Stage 1 in plain JavaScript: the loss of captions, its slope along every weight of the projector, and Adam.
//
// Encoder and language model are frozen. The slope (the gradient) has to travel backwards through the language model all
// the same: from the words of the caption to the vision tokens before them, and on into the projector. On the way forward
// `read` takes down what the way back needs. On the way back each function here is the chain rule of one part of
// engine.js: from the slope along what the part gave, to the slope along what it was given.

// --- The way back, part by part --------------------------------------------------------------------------------------

// y = x Wᵀ gives dx = dy W: the same product with the turned matrix. Frozen weights are turned once.
const turned = new WeakMap();
function linearBack(dy, rows, weight, outputs) {
  if (!turned.has(weight)) turned.set(weight, transpose(weight, outputs));
  return linear(dy, rows, turned.get(weight), null, weight.length / outputs);
}

function transpose(matrix, rows) {
  const columns = matrix.length / rows;
  const other = new Float32Array(matrix.length);
  for (let r = 0; r < rows; r += 1) for (let c = 0; c < columns; c += 1) other[c * rows + r] = matrix[r * columns + c];
  return other;
}

// y = s x g with s = 1 / √(mean of x² + ε): a longer x makes a smaller s, so what points along x is taken away.
function rmsNormBack(dy, x, rows, weight, epsilon = 1e-6) {
  const d = weight.length;
  const dx = new Float32Array(x.length);
  for (let r = 0; r < rows; r += 1) {
    let [square, along] = [0, 0];
    for (let i = 0; i < d; i += 1) {
      const value = x[r * d + i];
      square += (value * value) / d;
      along += (dy[r * d + i] * weight[i] * value) / d;
    }
    const scale = 1 / Math.sqrt(square + epsilon);
    const pull = along * scale * scale;
    for (let i = 0; i < d; i += 1) dx[r * d + i] = scale * (dy[r * d + i] * weight[i] - x[r * d + i] * pull);
  }
  return dx;
}

// Causal attention, head by head: the shares of each query are computed again. A share p gets the slope v·dy; behind the
// softmax a score gets p times what its share's slope is above the mean of all.
function attendBack(dy, q, k, v, rows, heads) {
  const d = q.length / rows;
  const width = d / heads;
  const [dq, dk, dv] = [0, 0, 0].map(() => new Float32Array(q.length));
  const [shares, slopes] = [new Float64Array(rows), new Float64Array(rows)];
  for (let h = 0; h < heads; h += 1) {
    for (let r = 0; r < rows; r += 1) {
      const at = r * d + h * width;
      let most = -Infinity;
      for (let j = 0; j <= r; j += 1) {
        let [score, slope] = [0, 0];
        for (let i = 0, from = j * d + h * width; i < width; i += 1) {
          score += q[at + i] * k[from + i];
          slope += dy[at + i] * v[from + i];
        }
        shares[j] = score / Math.sqrt(width);
        slopes[j] = slope;
        most = Math.max(most, shares[j]);
      }
      let [sum, middle] = [0, 0];
      for (let j = 0; j <= r; j += 1) sum += shares[j] = Math.exp(shares[j] - most);
      for (let j = 0; j <= r; j += 1) middle += (shares[j] /= sum) * slopes[j];
      for (let j = 0; j <= r; j += 1) {
        const score = (shares[j] * (slopes[j] - middle)) / Math.sqrt(width);
        for (let i = 0, from = j * d + h * width; i < width; i += 1) {
          dq[at + i] += score * k[from + i];
          dk[from + i] += score * q[at + i];
          dv[from + i] += shares[j] * dy[at + i];
        }
      }
    }
  }
  return [dq, dk, dv];
}

// Φ(x) + x φ(x), the slope of gelu.
const geluSlope = (x) => 0.5 * (1 + erf(x * Math.SQRT1_2)) + (x * Math.exp(-0.5 * x * x)) / Math.sqrt(2 * Math.PI);

// All layers of the language model, the last one first. dy: the slope along the rows behind the final norm.
function readBack(model, tape, dy) {
  const rows = dy.length / model.d;
  let slope = rmsNormBack(dy, tape[model.layers].state, rows, model.weights["language_model.model.norm.weight"]);
  for (let k = model.layers - 1; k >= 0; k -= 1) {
    const { state, middle, q, key, value, gate, up } = tape[k];
    const of = (name) => model.weights[`language_model.model.layers.${k}.${name}.weight`];
    const back = (name, d) => linearBack(d, rows, of(name), d.length / rows);
    // What a block makes is added to its input. So a slope goes past the block unchanged, and through it as well.
    const inner = back("mlp.down_proj", slope);
    const [dGate, dUp] = [new Float32Array(gate.length), new Float32Array(gate.length)];
    for (let i = 0; i < gate.length; i += 1) {
      const on = 1 / (1 + Math.exp(-gate[i]));
      dUp[i] = inner[i] * gate[i] * on;
      dGate[i] = inner[i] * up[i] * on * (1 + gate[i] * (1 - on));
    }
    const read = back("mlp.gate_proj", dGate);
    add(read, back("mlp.up_proj", dUp));
    add(slope, rmsNormBack(read, middle, rows, of("post_attention_layernorm")));
    const [dq, dk, dv] = attendBack(back("self_attn.o_proj", slope), q, key, value, rows, HEADS);
    rotate(dq, rows, HEADS, 0, -1);
    rotate(dk, rows, HEADS, 0, -1);
    const input = back("self_attn.q_proj", dq);
    add(input, back("self_attn.k_proj", dk));
    add(input, back("self_attn.v_proj", dv));
    add(slope, rmsNormBack(input, state, rows, of("input_layernorm")));
  }
  return slope;
}

// --- The loss --------------------------------------------------------------------------------------------------------

// A caption as the language model reads it behind the picture: line break, caption, "</s>".
export const captionIds = (model, caption) => [...model.tokenize("\n"), ...model.tokenize(` ${caption}`), EOS];

// The loss of one caption under its picture, summed over its tokens, in nats. `slopes` gets the projector's slopes added,
// each divided by `count`, the number of tokens in the batch; without it nothing goes back.
export function captionLoss(model, projector, features, ids, slopes = null, count = 1) {
  const d = model.d;
  const part = (name) => projector[`multi_modal_projector.${name}`];
  // Forward: features -> tokens -> all layers -> logits.
  const before = linear(features, IMAGE_TOKENS, part("linear_1.weight"), part("linear_1.bias"), d);
  const inner = before.map(gelu);
  const tokens = linear(inner, IMAGE_TOKENS, part("linear_2.weight"), part("linear_2.bias"), d);
  const x = new Float32Array((1 + IMAGE_TOKENS + ids.length - 1) * d);
  x.set(model.embed([BOS]));
  x.set(tokens, d);
  x.set(model.embed(ids.slice(0, -1)), d + tokens.length); // the last one has nothing to predict
  const tape = slopes && [];
  const { states } = model.read(x, null, tape);
  const told = ids.length - 1;
  const first = x.length - told * d; // the row of the line break, which predicts the caption's first token
  const logits = linear(states[model.layers - 1].subarray(first), told, model.embeddings, null, model.words.length);
  let loss = 0;
  for (let t = 0; t < told; t += 1) {
    const row = logits.subarray(t * model.words.length, (t + 1) * model.words.length);
    const shares = softmax(row);
    loss -= Math.log(shares[ids[t + 1]]);
    // The slope along a logit: its probability, minus 1 for the right word.
    shares[ids[t + 1]] -= 1;
    row.set(shares.map((share) => share / count));
  }
  if (!slopes) return loss;
  // Back: logits -> all layers -> tokens -> the projector's weights.
  const dy = new Float32Array(x.length);
  dy.set(linearBack(logits, told, model.embeddings, model.words.length), first);
  const dTokens = readBack(model, tape, dy).subarray(d, d + tokens.length);
  addOuter(slopes, "linear_2", dTokens, inner, d);
  const dInner = linear(dTokens, IMAGE_TOKENS, transpose(part("linear_2.weight"), d), null, d);
  for (let i = 0; i < dInner.length; i += 1) dInner[i] *= geluSlope(before[i]);
  addOuter(slopes, "linear_1", dInner, features, d);
  return loss;
}

// y = x Wᵀ + b gives dW = dyᵀ x and db = the sum of dy's rows.
function addOuter(slopes, name, dy, x, outputs) {
  const dw = slopes[`multi_modal_projector.${name}.weight`];
  const db = slopes[`multi_modal_projector.${name}.bias`];
  const inputs = dw.length / outputs;
  for (let r = 0; r < dy.length / outputs; r += 1) {
    for (let o = 0; o < outputs; o += 1) {
      const value = dy[r * outputs + o];
      db[o] += value;
      for (let i = 0; i < inputs; i += 1) dw[o * inputs + i] += value * x[r * inputs + i];
    }
  }
}

// --- Adam ------------------------------------------------------------------------------------------------------------

// The learning rate of a step (the first is 0) as a share of the highest: it rises over the warm-up, then falls as a
// cosine does, to a hundredth.
export function rateShare(step, steps, warmup) {
  if (step < warmup) return (step + 1) / warmup;
  const progress = (step - warmup) / Math.max(1, steps - warmup);
  return 0.01 + 0.99 * 0.5 * (1 + Math.cos(Math.PI * progress));
}

// Adam as torch.optim.AdamW without weight decay, on slopes that are cut to a length of 1. Weights change in place.
export class Adam {
  constructor(weights) {
    this.weights = weights;
    this.steps = 0;
    this.mean = zerosLike(weights);
    this.square = zerosLike(weights);
  }

  step(slopes, rate) {
    this.steps += 1;
    let length = 0;
    for (const slope of Object.values(slopes)) for (const value of slope) length += value * value;
    const cut = Math.min(1, 1 / (Math.sqrt(length) + 1e-6));
    const [a, b] = [0.9, 0.98]; // how much of the running averages is kept
    const [young, youngSquare] = [1 - a ** this.steps, 1 - b ** this.steps]; // they began at zero
    for (const [name, weight] of Object.entries(this.weights)) {
      const [mean, square] = [this.mean[name], this.square[name]];
      for (let i = 0; i < weight.length; i += 1) {
        const slope = cut * slopes[name][i];
        mean[i] = a * mean[i] + (1 - a) * slope;
        square[i] = b * square[i] + (1 - b) * slope * slope;
        weight[i] -= (rate * mean[i]) / young / (Math.sqrt(square[i] / youngSquare) + 1e-8);
      }
    }
  }
}

const zerosLike = (weights) =>
  Object.fromEntries(Object.entries(weights).map(([name, values]) => [name, new Float64Array(values.length)]));

// One step on a batch of { features, ids }: the mean loss of all its tokens, before the step.
export function trainingStep(model, adam, batch, rate) {
  const slopes = zerosLike(adam.weights);
  const count = batch.reduce((sum, { ids }) => sum + ids.length - 1, 0);
  let loss = 0;
  for (const { features, ids } of batch) loss += captionLoss(model, adam.weights, features, ids, slopes, count) / count;
  adam.step(slopes, rate);
  return loss;
}
