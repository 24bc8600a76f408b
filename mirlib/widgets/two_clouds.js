// Two Gaussian clouds in the plane and the Fréchet distance between them. two_clouds.py computes the same in Python.
const TEXT_MEAN = [1, 0.5];
const TEXT_SPREAD = [1, 0.5];
const DIRECTIONS = 1024;
const TRAITS = ["mean_shift", "vision_scale", "rotation", "anisotropy", "layer_scale", "text_centric"];

// erf by its series of positive terms; beyond 6 it is 1 to the last digit.
function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x;
  let sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n += 1) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

// E‖x‖ of a Gaussian: π/2 times the mean over all directions u of E|u·x|.
function meanNorm(mean, [xx, xy, yy]) {
  let sum = 0;
  for (let k = 0; k < DIRECTIONS; k += 1) {
    const c = Math.cos((Math.PI * k) / DIRECTIONS);
    const s = Math.sin((Math.PI * k) / DIRECTIONS);
    const m = c * mean[0] + s * mean[1];
    const sd = Math.sqrt(c * c * xx + 2 * c * s * xy + s * s * yy);
    const z = m / sd;
    sum += sd * Math.sqrt(2 / Math.PI) * Math.exp((-z * z) / 2) + m * erf(z / Math.SQRT2);
  }
  return ((Math.PI / 2) * sum) / DIRECTIONS;
}

// Means, standard deviations and covariances [xx, xy, yy] of the two clouds, before text-centric scaling.
function clouds(state) {
  const size = state.layer_scale;
  const angle = (state.rotation * Math.PI) / 180;
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  const side = state.vision_scale * Math.sqrt(TEXT_SPREAD[0] * TEXT_SPREAD[1]) * size;
  const [long, short] = [side * Math.sqrt(state.anisotropy), side / Math.sqrt(state.anisotropy)];
  const length = Math.hypot(...TEXT_MEAN);
  const text = { mean: TEXT_MEAN.map((m) => m * size), spread: TEXT_SPREAD.map((d) => d * size), angle: 0 };
  const vision = {
    mean: TEXT_MEAN.map((m) => m * size * (1 + state.mean_shift / length)),
    spread: [long, short],
    angle,
  };
  text.covariance = [text.spread[0] ** 2, 0, text.spread[1] ** 2];
  vision.covariance = [
    c * c * long ** 2 + s * s * short ** 2,
    c * s * (long ** 2 - short ** 2),
    s * s * long ** 2 + c * c * short ** 2,
  ];
  return { vision, text };
}

function compute(state) {
  const { vision, text } = clouds(state);
  const textNorm = meanNorm(text.mean, text.covariance);
  const alpha = state.text_centric ? 1 / textNorm : 1;
  const [a, b] = [vision.covariance, text.covariance];
  const spreadSum = a[0] + a[2] + b[0] + b[2];
  const product = a[0] * b[0] + 2 * a[1] * b[1] + a[2] * b[2];
  const roots = vision.spread[0] * vision.spread[1] * text.spread[0] * text.spread[1];
  const difference = spreadSum - 2 * Math.sqrt(product + 2 * roots);
  const mean_term = alpha ** 2 * (state.layer_scale * state.mean_shift) ** 2;
  // Equal clouds leave only the rounding of the subtraction.
  const covariance_term = difference > 1e-12 * spreadSum ? alpha ** 2 * difference : 0;
  const total = mean_term + covariance_term;
  const norm_ratio = meanNorm(vision.mean, vision.covariance) / textNorm;
  return { mean_term, covariance_term, total, log10: Math.log10(total), norm_ratio, alpha, vision, text };
}

// The same points each time: a sequence that fills the unit square evenly, folded into a Gaussian.
function points(count) {
  const halton = (index, base) => {
    let [fraction, value] = [1, 0];
    for (let i = index; i > 0; i = Math.floor(i / base)) {
      fraction /= base;
      value += fraction * (i % base);
    }
    return value;
  };
  return Array.from({ length: count }, (_, i) => {
    const radius = Math.sqrt(-2 * Math.log(1 - halton(i + 1, 2)));
    const angle = 2 * Math.PI * halton(i + 1, 3);
    return [radius * Math.cos(angle), radius * Math.sin(angle)];
  });
}

const POINTS = points(90);
const [WIDTH, HEIGHT] = [480, 340];
const WINDOW = { left: -2.6, right: 10, bottom: -3.4, top: 5.525 }; // same shape as WIDTH × HEIGHT

function place(cloud, alpha, [x, y]) {
  const [c, s] = [Math.cos(cloud.angle), Math.sin(cloud.angle)];
  const [dx, dy] = [x * cloud.spread[0], y * cloud.spread[1]];
  return [alpha * (cloud.mean[0] + c * dx - s * dy), alpha * (cloud.mean[1] + s * dx + c * dy)];
}

// The smallest of a few fixed windows that shows both clouds whole: the picture keeps still while a slider moves a little.
function zoom(numbers) {
  const reach = { left: 0, right: 0, bottom: 0, top: 0 };
  for (const cloud of [numbers.vision, numbers.text]) {
    const dx = 2 * Math.sqrt(cloud.covariance[0]);
    const dy = 2 * Math.sqrt(cloud.covariance[2]);
    reach.left = Math.min(reach.left, numbers.alpha * (cloud.mean[0] - dx));
    reach.right = Math.max(reach.right, numbers.alpha * (cloud.mean[0] + dx));
    reach.bottom = Math.min(reach.bottom, numbers.alpha * (cloud.mean[1] - dy));
    reach.top = Math.max(reach.top, numbers.alpha * (cloud.mean[1] + dy));
  }
  const need = Math.max(...Object.keys(reach).map((side) => reach[side] / WINDOW[side]));
  return 2 ** Math.max(-2, Math.ceil(Math.log2(need)));
}

function draw(svg, numbers) {
  const k = zoom(numbers);
  const unit = WIDTH / (k * (WINDOW.right - WINDOW.left));
  const toX = (x) => (x - k * WINDOW.left) * unit;
  const toY = (y) => HEIGHT - (y - k * WINDOW.bottom) * unit;
  const parts = [];

  // Axes through the origin, from which norms are measured.
  const axis = { stroke: "var(--mirlib-line)", "stroke-width": 1 };
  parts.push(shape("line", { x1: 0, x2: WIDTH, y1: toY(0), y2: toY(0), ...axis }));
  parts.push(shape("line", { x1: toX(0), x2: toX(0), y1: 0, y2: HEIGHT, ...axis }));
  for (let tick = -2; tick <= 8; tick += 2) {
    const x = toX(tick * k);
    parts.push(shape("line", { x1: x, x2: x, y1: HEIGHT - 22, y2: HEIGHT - 17, ...axis }));
    parts.push(shape("text", { x, y: HEIGHT - 5, "text-anchor": "middle", class: "quiet" }, number(tick * k)));
  }

  for (const [name, cloud, colour, dash] of [
    ["text", numbers.text, "var(--mirlib-cool)", "none"],
    ["vision", numbers.vision, "var(--mirlib-warm)", "6 4"],
  ]) {
    const [cx, cy] = place(cloud, numbers.alpha, [0, 0]);
    const turn = `rotate(${(-cloud.angle * 180) / Math.PI} ${toX(cx)} ${toY(cy)})`;
    const look = { transform: turn, fill: colour, "fill-opacity": 0.1, stroke: colour, "stroke-dasharray": dash };
    for (const sigma of [1, 2]) {
      const [rx, ry] = cloud.spread.map((spread) => sigma * numbers.alpha * spread * unit);
      const width = sigma === 1 ? 2.5 : 1.2;
      parts.push(shape("ellipse", { cx: toX(cx), cy: toY(cy), rx, ry, ...look, "stroke-width": width }));
    }
    for (const point of POINTS) {
      const [px, py] = place(cloud, numbers.alpha, point);
      const [x, y] = [toX(px), toY(py)];
      parts.push(
        name === "text"
          ? shape("circle", { cx: x, cy: y, r: 1.9, fill: colour })
          : shape("path", { d: `M${x} ${y - 2.6}l2.4 4.4h-4.8z`, fill: colour }),
      );
    }
  }
  const [from, to] = [numbers.text, numbers.vision].map((cloud) => place(cloud, numbers.alpha, [0, 0]));
  const [x1, y1, x2, y2] = [toX(from[0]), toY(from[1]), toX(to[0]), toY(to[1])];
  parts.push(shape("line", { x1, y1, x2, y2, stroke: "var(--mirlib-ink)", "stroke-width": 2 }));
  const mark = { stroke: "var(--mirlib-paper)", "stroke-width": 2 };
  parts.push(shape("circle", { cx: x1, cy: y1, r: 6, fill: "var(--mirlib-cool)", ...mark }));
  parts.push(shape("path", { d: `M${x2} ${y2 - 8}l7.5 13h-15z`, fill: "var(--mirlib-warm)", ...mark }));

  // Names stand in a corner, so that they are never covered.
  parts.push(shape("circle", { cx: 14, cy: 16, r: 6, fill: "var(--mirlib-cool)" }));
  parts.push(shape("text", { x: 26, y: 21 }, "text (solid line, dots)"));
  parts.push(shape("path", { d: "M14 31l7 12h-14z", fill: "var(--mirlib-warm)" }));
  parts.push(shape("text", { x: 26, y: 43 }, "vision (dashed line, triangles)"));
  svg.replaceChildren(svg.querySelector("title"), ...parts);
}

const ROWS = [
  ["mean_term", "mean term", "solid"],
  ["covariance_term", "covariance term", "hatched"],
  ["total", "Fréchet distance, the sum", null],
  ["log10", "log₁₀ of it", null],
  ["norm_ratio", "norm ratio, vision / text", null],
  ["alpha", "factor on both clouds", null],
];

function render({ model, el }) {
  const read = () => Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
  const start = read();
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" }, shape("title"));
  const cells = {};
  const table = element("tbody");
  for (const [key, label, fill] of ROWS) {
    const bar = fill ? element("div", { class: `mirlib-bar ${fill}` }) : "";
    const value = element("td", { class: "mirlib-number", "data-name": key });
    cells[key] = { value, bar };
    table.append(
      element("tr", {}, element("th", { scope: "row" }, label), element("td", { class: "mirlib-bars" }, bar), value),
    );
  }
  const spoken = announcer();
  const controls = element(
    "div",
    {},
    slider(model, "mean_shift", { label: "Shift of the vision mean", min: 0, max: 6, step: 0.05 }),
    slider(model, "vision_scale", { label: "Spread of the vision cloud", min: 0.2, max: 3, step: 0.05 }),
    slider(model, "anisotropy", { label: "Its length over its width", min: 1, max: 5, step: 0.05 }),
    slider(model, "rotation", { label: "Its rotation", min: -90, max: 90, step: 1, show: (v) => `${number(v)}°` }),
    slider(model, "layer_scale", { label: "Scale of the layer (both clouds)", min: 0.25, max: 4, step: 0.05 }),
    toggle(model, "text_centric", { label: "Text-centric scaling: mean text norm = 1" }),
    element(
      "div",
      { class: "mirlib-buttons" },
      setter(model, "Reset", start),
      setter(model, "Make the clouds equal", { mean_shift: 0, vision_scale: 1, anisotropy: 2, rotation: 0 }),
    ),
  );

  const refresh = () => {
    const numbers = compute(read());
    draw(svg, numbers);
    for (const [key] of ROWS) {
      cells[key].value.textContent = number(numbers[key]);
      cells[key].value.dataset.value = String(numbers[key]);
    }
    for (const key of ["mean_term", "covariance_term"]) {
      const share = numbers.total > 0 ? numbers[key] / numbers.total : 0;
      cells[key].bar.style.width = `${100 * share}%`;
    }
    const sentence =
      `Fréchet distance ${number(numbers.total)}: mean term ${number(numbers.mean_term)}, ` +
      `covariance term ${number(numbers.covariance_term)}. Norm ratio ${number(numbers.norm_ratio)}.`;
    svg.querySelector("title").textContent = `A vision cloud and a text cloud. ${sentence}`;
    spoken.say(sentence);
  };
  refresh();

  const figures = element("div", { class: "mirlib-wide" }, element("table", {}, table), spoken.node);
  const frame = element("div", { class: "mirlib-frame" }, element("div", {}, svg), controls, figures);
  const root = element("div", { class: "mirlib-widget", role: "group", "aria-label": "Two clouds" }, frame);
  el.append(root);
  return watch(model, TRAITS, refresh);
}

export default { render };
