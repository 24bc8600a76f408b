// MIR over kinds of pictures and texts, and over numbers of samples. robustness.py computes the same in Python.
const ALL = "all";
const TRAITS = ["model", "cell", "reference_cell", "count"];
const LINES = ["none", "8 4", "2 3", "10 3 2 3", "14 4"];
const [WIDTH, HEIGHT] = [480, 240];
const BOX = { left: 58, right: 468, top: 26, bottom: 196 };

const deviation = (values) => {
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
};
const span = (values) => Math.max(...values) - Math.min(...values);

function cellNumbers(models, [picture, text], [otherPicture, otherText], unit) {
  const draws = models.map((model) => model.kinds[picture][text]);
  const means = draws.map(mean);
  const differences = models.map((model, i) => means[i] - mean(model.kinds[otherPicture][otherText]));
  const everything = draws.flat();
  const difference = mean(differences);
  return {
    mean: mean(means),
    low: Math.min(...everything),
    high: Math.max(...everything),
    values: everything.length,
    model_low: Math.min(...means),
    model_high: Math.max(...means),
    draw_range: mean(draws.map(span)),
    difference,
    difference_low: Math.min(...differences),
    difference_high: Math.max(...differences),
    in_units: unit ? difference / unit : null,
  };
}

function rangeOfCells(models) {
  return mean(models.map((model) => span(Object.values(model.kinds).flatMap((row) => Object.values(row).map(mean)))));
}

const byNumber = (counts) => Object.keys(counts).sort((a, b) => Number(a) - Number(b));

function countNumbers(models, count, unit) {
  const draws = models.map((model) => model.counts[count]);
  const largest = byNumber(models[0].counts).at(-1);
  const everything = draws.flat();
  const middle = mean(draws.map(mean));
  const drawRange = mean(draws.map(span));
  return {
    mean: middle,
    low: Math.min(...everything),
    high: Math.max(...everything),
    draw_range: drawRange,
    deviation: Math.min(...draws.map((values) => values.length)) > 1 ? mean(draws.map(deviation)) : null,
    shift: middle - mean(models.map((model) => mean(model.counts[largest]))),
    in_units: unit ? drawRange / unit : null,
  };
}

const fixed = (value, digits = 3) => value.toFixed(digits).replace("-", "−");
const signed = (value, digits = 3) => {
  const text = fixed(value, digits);
  if (Number(value.toFixed(digits)) === 0) return text.replace("−", ""); // what rounds to 0 has no sign
  return value < 0 ? text : `+${text}`;
};
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

// Draws as dots over the number of samples, a line through the means of each model.
function drawCounts(svg, models, count) {
  const counts = byNumber(models[0].counts);
  const all = models.flatMap((model) => Object.values(model.counts).flat());
  let [low, high] = [Math.min(...all), Math.max(...all)];
  const room = 0.08 * (high - low || 0.01);
  [low, high] = [low - room, high + room];
  const [first, last] = [Math.log(Number(counts[0])), Math.log(Number(counts.at(-1)))];
  const toX = (n) =>
    BOX.left + 16 + ((Math.log(Number(n)) - first) / (last - first || 1)) * (BOX.right - BOX.left - 32);
  const toY = (value) => BOX.bottom - ((value - low) / (high - low)) * (BOX.bottom - BOX.top);
  const parts = rulings(low, high, 5, toY, BOX);
  const bar = { x: toX(count) - 9, width: 18, y: BOX.top, height: BOX.bottom - BOX.top };
  parts.push(shape("rect", { ...bar, fill: "var(--mirlib-cool)", "fill-opacity": 0.18 }));
  // Labels that would touch another are left out; the present N comes first, then both ends, then the others.
  const placed = [];
  for (const n of new Set([count, counts[0], counts.at(-1), ...counts])) {
    const half = 3 + 4.6 * n.length;
    if (placed.some((other) => Math.abs(toX(n) - other.x) < half + other.half)) continue;
    placed.push({ x: toX(n), half });
    const place = { x: toX(n), y: BOX.bottom + 18, "text-anchor": "middle", class: n === count ? "" : "quiet" };
    parts.push(shape("text", place, n));
  }
  const middle = (BOX.left + BOX.right) / 2;
  const caption = { x: middle, y: HEIGHT - 6, "text-anchor": "middle", class: "quiet" };
  parts.push(shape("text", caption, "number of samples N"));
  parts.push(shape("text", { x: 4, y: 14, class: "quiet" }, "MIR of each draw; lines: mean of a model's draws"));
  models.forEach((model, i) => {
    const d = `M${counts.map((n) => `${toX(n)} ${toY(mean(model.counts[n]))}`).join("L")}`;
    const line = { d, fill: "none", stroke: "var(--mirlib-quiet)", "stroke-dasharray": LINES[i % LINES.length] };
    parts.push(shape("path", { ...line, "stroke-width": 1.2 }));
    for (const n of counts) {
      for (const value of model.counts[n]) {
        const dot = { cx: toX(n), cy: toY(value), r: n === count ? 3.4 : 2.2, "data-count": n };
        parts.push(shape("circle", { ...dot, fill: n === count ? "var(--mirlib-cool)" : "var(--mirlib-quiet)" }));
      }
    }
  });
  svg.replaceChildren(svg.querySelector("title"), ...parts);
}

// The draws of the cell that is looked at, over those of the reference cell: one line a model.
function drawCell(svg, models, cell, reference) {
  const rows = [
    { at: reference, y: 22, label: "reference", hollow: true },
    { at: cell, y: 56, label: "this cell", hollow: false },
  ];
  const all = models.flatMap((model) => Object.values(model.kinds).flatMap((row) => Object.values(row).flat()));
  const room = 0.05 * (span(all) || 0.01);
  const [low, high] = [Math.min(...all) - room, Math.max(...all) + room];
  const toX = (value) => 66 + ((value - low) / (high - low)) * 264;
  const parts = [];
  for (const tick of ticks(low, high, 5)) {
    const x = toX(tick);
    parts.push(shape("line", { x1: x, x2: x, y1: 8, y2: 72, stroke: "var(--mirlib-line)" }));
    parts.push(shape("text", { x, y: 88, "text-anchor": "middle", class: "quiet" }, number(tick)));
  }
  for (const { at, y, label, hollow } of rows) {
    parts.push(shape("text", { x: 0, y: y + 4, class: "quiet" }, label));
    const draws = models.map((model) => model.kinds[at[0]][at[1]]);
    const middle = toX(mean(draws.map(mean)));
    const stroke = { stroke: "var(--mirlib-ink)", "stroke-width": 2 };
    parts.push(shape("line", { x1: middle, x2: middle, y1: y - 13, y2: y + 13, ...stroke }));
    draws.forEach((values, i) => {
      const height = y + (i - (draws.length - 1) / 2) * Math.min(4, 20 / draws.length);
      for (const value of values) {
        const look = hollow
          ? { fill: "var(--mirlib-paper)", stroke: "var(--mirlib-cool)", "stroke-width": 1.5 }
          : { fill: "var(--mirlib-warm)" };
        parts.push(shape("circle", { cx: toX(value), cy: height, r: 3, ...look }));
      }
    });
  }
  svg.replaceChildren(svg.querySelector("title"), ...parts);
}

function render({ model, el }) {
  const everyone = model.get("models");
  const unit = model.get("unit");
  const pictures = [...new Set(everyone.flatMap((one) => Object.keys(one.kinds)))];
  const texts = [...new Set(everyone.flatMap((one) => Object.values(one.kinds).flatMap(Object.keys)))];
  const seeds = everyone.map((one) => one.seed).sort((a, b) => a - b);
  let hovered = null; // a cell under the pointer is shown for as long as it is under the pointer

  // --- the grid ---
  const buttons = new Map();
  const key = (picture, text) => JSON.stringify([picture, text]);
  const head = element("tr", {}, element("td"), ...texts.map((text) => element("th", { scope: "col" }, text)));
  const lines = pictures.map((picture, row) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, picture),
      ...texts.map((text, column) => {
        const button = element("button", { type: "button", "data-picture": picture, "data-text": text });
        for (const event of ["click", "focus"]) {
          button.addEventListener(event, () => assign(model, { cell: [picture, text] }));
        }
        for (const [event, under] of [["pointerenter", [picture, text]], ["pointerleave", null]]) {
          button.addEventListener(event, () => {
            hovered = under;
            refresh();
          });
        }
        button.addEventListener("keydown", (event) => {
          const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
          if (!step) return;
          event.preventDefault();
          const to = [pictures[row + step[0]], texts[column + step[1]]];
          buttons.get(key(...to))?.focus();
        });
        buttons.set(key(picture, text), button);
        return element("td", {}, button);
      }),
    ),
  );
  const caption = element("caption", { class: "mirlib-spoken" }, "MIR by kind of picture and kind of text");
  const grid = element(
    "table",
    { class: "mirlib-cells" },
    caption,
    element("thead", {}, head),
    element("tbody", {}, ...lines),
  );

  // --- the numbers of a cell ---
  const title = element("p", { "data-name": "title" });
  const strip = shape("svg", { viewBox: "0 0 340 94", role: "img", style: "max-width: 26rem" }, shape("title"));
  const rows = {};
  const numbersBody = element("tbody");
  const row = (body, name, label, under) => body.append(numberRow(rows, name, label, element("small", {}, under)));
  row(numbersBody, "mean", "MIR", "mean, lowest and highest draw");
  row(numbersBody, "models", "models", "lowest and highest mean");
  row(numbersBody, "draw_range", "range over draws", "within a model");
  row(numbersBody, "difference", "minus the reference", "lowest and highest model");
  row(numbersBody, "cells", "range over all cells", "within a model");

  // --- number of samples ---
  const withCounts = everyone.filter((one) => Object.keys(one.counts).length);
  const counts = withCounts.length ? byNumber(withCounts[0].counts) : [];
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "mirlib-plot" }, shape("title"));
  const countBody = element("tbody");
  row(countBody, "count_mean", "MIR", "mean, lowest and highest draw");
  row(countBody, "count_range", "range over draws", "within a model");
  row(countBody, "count_deviation", "standard deviation", "of the draws of a model");
  row(countBody, "count_shift", "shift of the mean", `from that at N = ${counts.at(-1)}`);
  // The slider moves over the places of the list; a small model translates, so that `count` stays the number itself.
  const position = {
    get: () => Math.max(0, counts.indexOf(model.get("count"))),
    set: (_, index) => model.set("count", counts[index]),
    save_changes: () => model.save_changes(),
    on: (_, listener) => model.on("change:count", listener),
  };

  const spoken = announcer();
  const note = element("p", { class: "mirlib-note" });
  const put = (name, text, under = "") => rows[name].replaceChildren(text, element("small", {}, under));
  const between = (low, high) => `${fixed(low)} to ${fixed(high)}`;

  const refresh = () => {
    const state = Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
    const cell = hovered ?? state.cell;
    const reference = state.reference_cell;
    const models = everyone.filter((one) => state.model === ALL || String(one.seed) === state.model);
    const inUnits = (value) => (unit ? `${fixed(value / unit, 2)} U` : "");
    const who = state.model === ALL ? plural(models.length, "model") : `the model of seed ${state.model}`;
    const seen = new Map();
    for (const picture of pictures) {
      for (const text of texts) seen.set(key(picture, text), cellNumbers(models, [picture, text], reference, unit));
    }
    // Full colour, at which the number can still be read in the dark theme, stands for a quarter of U, or for the farthest cell where there is no U.
    const farthest = Math.max(...[...seen.values()].map((one) => Math.abs(one.difference)));
    const full = unit / 4 || farthest || 1;
    for (const [name, button] of buttons) {
      const one = seen.get(name);
      const isReference = name === key(...reference);
      button.replaceChildren(fixed(one.mean), element("small", {}, isReference ? "reference" : signed(one.difference)));
      button.style.setProperty("--mirlib-shade", one.difference > 0 ? "var(--mirlib-warm)" : "var(--mirlib-cool)");
      button.style.setProperty("--mirlib-strength", `${Math.min(1, Math.abs(one.difference) / full) * 40}%`);
      button.toggleAttribute("data-reference", isReference);
      button.setAttribute("aria-pressed", String(name === key(...state.cell)));
      button.tabIndex = name === key(...state.cell) ? 0 : -1;
      button.setAttribute(
        "aria-label",
        `${button.dataset.picture} with ${button.dataset.text}: MIR ${fixed(one.mean)}, ` +
          (isReference ? "the reference" : `${signed(one.difference)} to the reference`),
      );
    }
    const one = seen.get(key(...cell));
    title.replaceChildren(element("strong", {}, `${cell[0]} with ${cell[1]}`), `, ${who}`);
    put("mean", fixed(one.mean), between(one.low, one.high));
    put("models", between(one.model_low, one.model_high));
    put("draw_range", fixed(one.draw_range), inUnits(one.draw_range));
    const spread = `${signed(one.difference_low)} to ${signed(one.difference_high)}`;
    put("difference", signed(one.difference), models.length > 1 ? spread : "");
    if (unit) rows.difference.append(element("small", {}, `${signed(one.in_units, 2)} U`));
    const cells = rangeOfCells(models);
    put("cells", fixed(cells), inUnits(cells));
    drawCell(strip, models, cell, reference);
    strip.querySelector("title").textContent = `MIR of ${plural(one.values, "draw")} of this cell, beside the reference.`;

    const draws = models[0].kinds[cell[0]][cell[1]].length;
    note.textContent =
      `${plural(models.length, "model")}, ${plural(draws, "draw")} of samples each. Differences to the reference ` +
      `(${reference.join(" with ")}) are taken within a model. ` +
      (unit
        ? `U is ${fixed(unit)}. Red is higher than the reference, blue lower; from U/4 on the colour is full.`
        : "Red is higher than the reference, blue lower; the farthest cell has full colour.");

    let counted = null;
    const able = models.filter((one) => Object.keys(one.counts).length);
    samples.hidden = !able.length;
    if (able.length) {
      counted = countNumbers(able, state.count, unit);
      drawCounts(svg, able, state.count);
      put("count_mean", fixed(counted.mean), between(counted.low, counted.high));
      put("count_range", fixed(counted.draw_range), inUnits(counted.draw_range));
      put("count_deviation", counted.deviation === null ? "one draw" : fixed(counted.deviation, 4));
      put("count_shift", signed(counted.shift), inUnits(Math.abs(counted.shift)));
      svg.querySelector("title").textContent =
        `MIR by number of samples. At ${state.count}: mean ${fixed(counted.mean)}, range over draws ${fixed(counted.draw_range)}.`;
    }
    root.dataset.numbers = JSON.stringify({ cell: one, count: counted, cells });
    if (!hovered) {
      spoken.say(
        `${cell[0]} with ${cell[1]}: MIR ${fixed(one.mean)}, ${signed(one.difference)} to the reference` +
          (unit ? `, ${signed(one.in_units, 2)} U. ` : ". ") +
          (counted ? `With ${state.count} samples: mean ${fixed(counted.mean)}, range over draws ${fixed(counted.draw_range)}.` : ""),
      );
    }
  };

  const refer = () => assign(model, { reference_cell: model.get("cell") });
  const toReference = pushButton("Make this cell the reference", refer);
  const pick = element(
    "div",
    { class: "mirlib-wide" },
    traitChoice(model, "model", "Model", [
      ["", [[ALL, "all models"], ...seeds.map((seed) => [String(seed), `seed ${seed}`])]],
    ]),
  );
  const left = element("div", {}, grid, element("div", { class: "mirlib-buttons" }, toReference));
  const right = element("div", {}, title, strip, element("table", {}, numbersBody));
  const samples = element("div", { class: "mirlib-wide mirlib-samples" });
  if (counts.length) {
    const side = element(
      "div",
      {},
      slider(position, "count", {
        label: "Number of samples N",
        min: 0,
        max: counts.length - 1,
        step: 1,
        show: (index) => counts[index],
      }),
      element("table", {}, countBody),
    );
    samples.append(element("div", {}, svg), side);
  }
  const end = element("div", { class: "mirlib-wide" }, note, spoken.node);
  const frame = element("div", { class: "mirlib-frame" }, pick, left, right, samples, end);
  const root = element("div", { class: "mirlib-widget", role: "group", "aria-label": "Pictures and texts" }, frame);
  refresh();
  el.append(root);
  return watch(model, TRAITS, refresh);
}

export default { render };
