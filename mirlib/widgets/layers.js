// FID of every layer over the ledger's runs, up to four arms at once. layers.py computes the same in Python.
const MEAN = "mean";
const PLACES = 4;
const TRAITS = ["chosen", "seed", "quantity", "log_scale", "layer"];
const QUANTITIES = {
  fid: { label: "FID", unit: "squared mean text norms", level: "vision rows zeroed" },
  mean_term: { label: "mean term of FID", unit: "squared mean text norms", level: "FID, vision rows zeroed" },
  covariance_term: {
    label: "covariance term of FID",
    unit: "squared mean text norms",
    level: "FID, vision rows zeroed",
  },
  norm_ratio: { label: "norm ratio", unit: "vision / text", level: "equal norms" },
  share: { label: "share of the sum over layers", unit: "", level: "equal shares" },
};
// Colour, dashes and mark of the four places: dashes and marks alone tell them apart.
const LOOKS = [
  { name: "A", colour: "var(--mirlib-warm)", dash: "none", mark: "circle" },
  { name: "B", colour: "var(--mirlib-cool)", dash: "8 4", mark: "square" },
  { name: "C", colour: "var(--mirlib-third)", dash: "2 3", mark: "triangle" },
  { name: "D", colour: "var(--mirlib-fourth)", dash: "10 3 2 3", mark: "diamond" },
];
const [WIDTH, HEIGHT] = [480, 400];
const BOX = { left: 58, right: 468, top: 48, bottom: 356 };

function layerValues(run, quantity) {
  if (quantity === "share") {
    const total = run.per_layer.reduce((sum, value) => sum + value, 0);
    return run.per_layer.map((value) => value / total);
  }
  return run[quantity === "fid" ? "per_layer" : quantity];
}

function layerSeries(arm, quantity, seed) {
  const runs = arm.runs.filter((run) => seed === MEAN || String(run.seed) === seed);
  if (!runs.length) return null;
  const curves = runs.map((run) => layerValues(run, quantity));
  const accuracies = runs.filter((run) => run.accuracy !== undefined).map((run) => run.accuracy);
  return {
    name: arm.name,
    seeds: runs.map((run) => run.seed),
    curve: curves[0].map((_, k) => meanAndRange(curves.map((values) => values[k]))),
    mir: meanAndRange(runs.map((run) => run.value)),
    norm_only: meanAndRange(runs.map((run) => run.norm_only)),
    zeroed_rows: meanAndRange(runs.map((run) => run.null)),
    accuracy: accuracies.length ? meanAndRange(accuracies) : null,
  };
}

function zeroedLevel(series, quantity) {
  if (!series.length) return null;
  const layers = series[0].curve.length;
  if (quantity === "norm_ratio") return 1;
  if (quantity === "share") return 1 / layers;
  return 10 ** (series.reduce((sum, one) => sum + one.zeroed_rows.mean, 0) / series.length) / layers;
}

function mark(kind, x, y, size, attributes) {
  if (kind === "circle") return shape("circle", { cx: x, cy: y, r: size, ...attributes });
  const s = size * 1.15;
  const d = {
    square: `M${x - size} ${y - size}h${2 * size}v${2 * size}h${-2 * size}z`,
    triangle: `M${x} ${y - s * 1.2}l${s * 1.2} ${s * 2.1}h${-s * 2.4}z`,
    diamond: `M${x} ${y - s * 1.35}l${s * 1.35} ${s * 1.35}l${-s * 1.35} ${s * 1.35}l${-s * 1.35} ${-s * 1.35}z`,
  }[kind];
  return shape("path", { d, ...attributes });
}

function draw(svg, shown, { quantity, layers, level, logarithmic, layer }) {
  const parts = [];
  const values = shown.flatMap(({ series }) => series.curve.flatMap((band) => [band.low, band.high]));
  const positive = values.filter((value) => value > 0);
  const log = logarithmic && positive.length > 0;
  const all = [...(log ? positive : values), ...(level === null ? [] : [level])];
  let [low, high] = all.length ? [Math.min(...all), Math.max(...all)] : [0.1, 1];
  if (log) [low, high] = [low / 1.25, high * 1.25];
  else [low, high] = [Math.min(0, low), high + 0.06 * (high - Math.min(0, low) || 1)];
  const scale = log ? Math.log10 : (value) => value;
  const toX = (k) => BOX.left + 14 + ((k - 1) * (BOX.right - BOX.left - 28)) / Math.max(1, layers - 1);
  // A value of 0 has no place on a logarithm: it is drawn at the lower edge.
  const toY = (value) => {
    const share = (scale(Math.max(value, log ? low : -Infinity)) - scale(low)) / (scale(high) - scale(low));
    return BOX.bottom - share * (BOX.bottom - BOX.top);
  };
  const axis = { stroke: "var(--mirlib-line)", "stroke-width": 1 };
  for (const tick of ticks(low, high, log)) {
    const y = toY(tick);
    parts.push(shape("line", { x1: BOX.left, x2: BOX.right, y1: y, y2: y, ...axis }));
    parts.push(shape("text", { x: BOX.left - 6, y: y + 4, "text-anchor": "end", class: "quiet" }, number(tick)));
  }
  const every = Math.ceil(layers / 12);
  for (let k = 1; k <= layers; k += 1) {
    if ((k - 1) % every && k !== layers) continue;
    parts.push(
      shape("text", { x: toX(k), y: BOX.bottom + 18, "text-anchor": "middle", class: k === layer ? "" : "quiet" }, k),
    );
  }
  const middle = (BOX.left + BOX.right) / 2;
  parts.push(shape("text", { x: middle, y: HEIGHT - 8, "text-anchor": "middle", class: "quiet" }, "layer"));
  const { label, unit } = QUANTITIES[quantity];
  parts.push(shape("text", { x: 4, y: 14, class: "quiet" }, unit ? `${label} (${unit})` : label));

  parts.push(
    shape("line", { x1: toX(layer), x2: toX(layer), y1: BOX.top, y2: BOX.bottom, stroke: "var(--mirlib-quiet)" }),
  );
  if (level !== null) {
    const y = toY(level);
    const stroke = { stroke: "var(--mirlib-ink)", "stroke-width": 1.5, "stroke-dasharray": "1 4" };
    parts.push(shape("line", { x1: BOX.left, x2: BOX.right, y1: y, y2: y, "stroke-linecap": "round", ...stroke }));
    // Its name stands above the picture, where no curve covers it.
    parts.push(shape("line", { x1: 4, x2: 40, y1: 30, y2: 30, "stroke-linecap": "round", ...stroke }));
    parts.push(shape("text", { x: 48, y: 34, class: "quiet" }, QUANTITIES[quantity].level));
  }
  for (const { series, look } of shown) {
    const edge = (side) => series.curve.map((band, k) => `${toX(k + 1)} ${toY(band[side])}`);
    if (series.seeds.length > 1) {
      const d = `M${edge("high").join("L")}L${edge("low").reverse().join("L")}z`;
      parts.push(shape("path", { d, fill: look.colour, "fill-opacity": 0.18 }));
    }
    const line = { fill: "none", stroke: look.colour, "stroke-width": 2.2, "stroke-dasharray": look.dash };
    parts.push(shape("path", { d: `M${edge("mean").join("L")}`, "data-place": look.name, ...line }));
    series.curve.forEach((band, k) => {
      parts.push(mark(look.mark, toX(k + 1), toY(band.mean), 3.6, { fill: look.colour }));
    });
  }
  svg.replaceChildren(svg.querySelector("title"), ...parts);
  return toX;
}

function swatch(look) {
  const svg = shape("svg", { viewBox: "0 0 44 14", class: "mirlib-swatch", "aria-hidden": "true" });
  const line = { x1: 0, x2: 44, y1: 7, y2: 7, stroke: look.colour, "stroke-width": 2.4, "stroke-dasharray": look.dash };
  svg.append(shape("line", line), mark(look.mark, 22, 7, 4.2, { fill: look.colour }));
  return svg;
}

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const range = (band, show) => (band.low === band.high ? "" : `${show(band.low)} to ${show(band.high)}`);
const fixed = (digits) => (value) => value.toFixed(digits).replace("-", "−");

function render({ model, el }) {
  const arms = model.get("arms");
  const byName = new Map(arms.map((arm) => [arm.name, arm]));
  const layers = Math.max(...arms.flatMap((arm) => arm.runs.map((run) => run.per_layer.length)));
  const seeds = [...new Set(arms.flatMap((arm) => arm.runs.map((run) => run.seed)))].sort((a, b) => a - b);
  const experiments = [...new Set(arms.map((arm) => arm.experiment))];
  const groups = experiments.map((experiment) => [
    experiment,
    arms.filter((arm) => arm.experiment === experiment).map((arm) => [arm.name, experiments.length > 1 ? arm.name : arm.arm]),
  ]);
  const at = (place) => model.get("chosen")[place] ?? "";

  const choices = LOOKS.map((look, place) => {
    const made = choice(
      `Curve ${look.name}`,
      [["", [["", "(none)"]]], ...groups],
      () => at(place),
      (name) => {
        const chosen = Array.from({ length: PLACES }, (_, i) => (i === place ? name : at(i)));
        model.set("chosen", chosen);
        model.save_changes();
      },
    );
    made.input.name = `curve_${look.name}`;
    made.node.querySelector("label").append(swatch(look));
    return made;
  });

  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "mirlib-plot" }, shape("title"));
  const readOff = element("th", { scope: "col" });
  const head = element(
    "tr",
    {},
    element("th", { scope: "col" }, "curve"),
    readOff,
    element("th", { scope: "col" }, "MIR"),
    element("th", { scope: "col" }, "accuracy"),
    element("th", { scope: "col" }, "norm-only"),
    element("th", { scope: "col" }, "zeroed rows"),
  );
  const body = element("tbody");
  const note = element("p", { class: "mirlib-note" });
  const spoken = announcer();
  const controls = element(
    "div",
    {},
    ...choices.map((made) => made.node),
    traitChoice(model, "quantity", "Quantity", [
      ["", Object.entries(QUANTITIES).map(([value, { label, unit }]) => [value, unit ? `${label} (${unit})` : label])],
    ]),
    traitChoice(model, "seed", "Seeds", [
      ["", [[MEAN, "mean of all, range as a band"], ...seeds.map((seed) => [String(seed), `seed ${seed} alone`])]],
    ]),
    slider(model, "layer", { label: "Layer to read off", min: 1, max: layers, step: 1, show: String }),
    toggle(model, "log_scale", { label: "Logarithmic axis" }),
  );

  let toX = null;
  const refresh = () => {
    const state = Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
    const layer = Math.min(state.layer, layers);
    const rows = LOOKS.flatMap((look, place) => {
      const arm = byName.get(at(place));
      return arm ? [{ look, arm, series: layerSeries(arm, state.quantity, state.seed) }] : [];
    });
    const shown = rows.filter((row) => row.series);
    const level = zeroedLevel(shown.map((row) => row.series), state.quantity);
    toX = draw(svg, shown, { ...state, layers, level, logarithmic: state.log_scale, layer });

    readOff.textContent = `layer ${layer}`;
    const cell = (band, name, show) =>
      band
        ? element(
            "td",
            { class: "mirlib-number", "data-name": name, "data-value": String(band.mean) },
            show(band.mean),
            element("small", {}, range(band, show)),
          )
        : element("td", { class: "mirlib-number" }, "not measured");
    body.replaceChildren(
      ...rows.map(({ look, arm, series }) => {
        const title = element("th", { scope: "row" }, look.name, swatch(look));
        if (!series) {
          title.append(element("small", {}, "no run"));
          return element("tr", {}, title, element("td", { colspan: 5 }, `${arm.name}: no run with seed ${state.seed}`));
        }
        title.append(element("small", {}, plural(series.seeds.length, "seed")));
        return element(
          "tr",
          {},
          title,
          cell(series.curve[layer - 1], "layer", number),
          cell(series.mir, "mir", fixed(3)),
          cell(series.accuracy, "accuracy", fixed(3)),
          cell(series.norm_only, "norm_only", fixed(3)),
          cell(series.zeroed_rows, "zeroed_rows", fixed(3)),
        );
      }),
    );
    const counts = shown.map(({ look, series }) => `${look.name}: ${plural(series.seeds.length, "seed")}`);
    note.textContent = shown.length
      ? `Behind the curves stand ${counts.join(", ")}. ` +
        "Small numbers are the lowest and the highest seed. MIR is the base-10 logarithm of the sum of FID over the layers."
      : "Choose a curve.";
    const sentence = shown
      .map(
        ({ look, arm, series }) =>
          `${look.name}, ${arm.name}, ${plural(series.seeds.length, "seed")}: MIR ${fixed(3)(series.mir.mean)}, ` +
          `${QUANTITIES[state.quantity].label} at layer ${layer} ${number(series.curve[layer - 1].mean)}` +
          (series.accuracy ? `, accuracy ${fixed(3)(series.accuracy.mean)}.` : "."),
      )
      .join(" ");
    svg.querySelector("title").textContent = `${QUANTITIES[state.quantity].label} of every layer. ${sentence}`;
    spoken.say(sentence || "No curve is chosen.");
    // All the numbers, unrounded, for whoever wants to check them.
    root.dataset.numbers = JSON.stringify({ series: shown.map((row) => row.series), level });
    for (const made of choices) made.refresh();
  };

  // A click in the picture reads off the nearest layer, as the slider does.
  svg.addEventListener("pointerdown", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) * WIDTH) / box.width;
    const distances = Array.from({ length: layers }, (_, i) => Math.abs(toX(i + 1) - x));
    model.set("layer", distances.indexOf(Math.min(...distances)) + 1);
    model.save_changes();
  });

  const scroll = { class: "mirlib-scroll", tabindex: 0, role: "region", "aria-label": "Numbers of the curves" };
  const table = element("div", scroll, element("table", {}, element("thead", {}, head), body));
  const figures = element("div", { class: "mirlib-wide" }, table, note, spoken.node);
  const frame = element("div", { class: "mirlib-frame" }, element("div", {}, svg), controls, figures);
  const root = element("div", { class: "mirlib-widget", role: "group", "aria-label": "FID layer by layer" }, frame);
  for (const name of TRAITS) model.on(`change:${name}`, refresh);
  refresh();
  el.append(root);
  return () => {
    for (const name of TRAITS) model.off(`change:${name}`, refresh);
  };
}

export default { render };
