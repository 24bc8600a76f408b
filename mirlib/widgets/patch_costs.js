// Pictures with their patches coloured by cost, layer by layer. patch_costs.py computes the same numbers in Python.
const TRAITS = ["picture", "layer", "patch", "coloured"];
// Dark is cheap and light is dear, as in the figures; evenly spaced from 0 to the top of the scale.
const COLOURS = ["#000004", "#1b0c41", "#4a0c6b", "#781c6d", "#a52c60", "#cf4446", "#ed6925", "#fb9b06", "#f7d13d", "#fcffa4"];
const [CHART_WIDTH, CHART_HEIGHT] = [360, 150];
const STRIP = 24; // patches in a line where their places are not known

function colour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (COLOURS.length - 1);
  const from = Math.min(Math.floor(place), COLOURS.length - 2);
  const [a, b] = [COLOURS[from], COLOURS[from + 1]].map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return `rgb(${a.map((value, i) => Math.round(value + (place - from) * (b[i] - value))).join(" ")})`;
}

const sum = (values) => values.reduce((total, value) => total + (value ?? 0), 0);

function reading(picture, layers, layer, patch) {
  const by_layer = picture.costs.map((costs) => costs[patch]);
  const parts = by_layer.map((cost, k) => (cost ?? 0) / layers[k + 1].kept);
  const cost = layer === 0 ? sum(by_layer) : by_layer[layer - 1];
  if (cost === null) return { cost: null, words: null, share: null, by_layer };
  const word = layers[layer].word;
  const totals = layers.slice(1).map((one) => one.distance);
  const share = layer === 0 ? sum(parts) / sum(totals) : parts[layer - 1] / totals[layer - 1];
  return { cost, words: word ? cost / word : null, share, by_layer };
}

// Where each patch is drawn: [x, y, width, height] in a picture of `size`; null for one that stands for no single place.
function boxes(picture, size) {
  const [width, height] = size;
  if (picture.rows === 0) {
    const side = width / STRIP;
    return picture.cells.map((_, i) => [(i % STRIP) * side, height + 4 + Math.floor(i / STRIP) * side, side, side]);
  }
  const [w, h] = [width / picture.columns, height / picture.rows];
  return picture.cells.map((cell) =>
    cell < 0 ? null : [(cell % picture.columns) * w, Math.floor(cell / picture.columns) * h, w, h],
  );
}

// The patch that an arrow key leads to, or the same one at the edge.
function neighbour(picture, patch, key) {
  const columns = picture.rows === 0 ? STRIP : picture.columns;
  const place = (i) => (picture.rows === 0 ? i : picture.cells[i]);
  const order = picture.cells.map((_, i) => i).filter((i) => place(i) >= 0);
  if (key === "Home") return order[0];
  if (key === "End") return order[order.length - 1];
  const [row, column] = [Math.floor(place(patch) / columns), place(patch) % columns];
  const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[key];
  if (column + right < 0 || column + right >= columns) return patch;
  const wanted = (row + down) * columns + column + right;
  return order.find((i) => place(i) === wanted) ?? patch;
}

function drawLegend(svg, scale, coloured) {
  const [left, right, top, height] = [8, CHART_WIDTH - 28, 16, 14];
  const toX = (value) => left + (Math.min(value, scale.top) / scale.top) * (right - left);
  const parts = [shape("text", { x: left, y: 10, class: "quiet" }, "cost of a patch, squared mean text norms")];
  const steps = 60;
  for (let i = 0; i < steps; i += 1) {
    const x = left + (i * (right - left)) / steps;
    const fill = colour((i + 0.5) / steps);
    parts.push(shape("rect", { x, y: top, width: (right - left) / steps + 0.6, height, fill, "fill-opacity": coloured ? 1 : 0.3 }));
  }
  const frame = { fill: "none", stroke: "var(--mirlib-quiet)", "stroke-width": 1 };
  parts.push(shape("rect", { x: left, y: top, width: right - left, height, ...frame }));
  for (const tick of ticks(0, scale.top, false, 4)) {
    parts.push(shape("text", { x: toX(tick), y: top + height + 13, "text-anchor": "middle", class: "quiet" }, number(tick)));
  }
  if (scale.word !== null) {
    const x = toX(scale.word);
    parts.push(shape("path", { d: `M${x} ${top + height + 16}l5 8h-10z`, fill: "var(--mirlib-cool)" }));
    const label = `a word onto other words: ${number(scale.word)}, 95 % below ${number(scale.high)}`;
    const end = x > CHART_WIDTH / 2;
    const at = { x: end ? x - 9 : x + 9, y: top + height + 26, "text-anchor": end ? "end" : "start", class: "quiet" };
    parts.push(shape("text", at, label));
  }
  svg.replaceChildren(...parts);
}

function drawChart(svg, numbers, layers, layer) {
  const box = { left: 40, right: CHART_WIDTH - 6, top: 20, bottom: CHART_HEIGHT - 28 };
  const count = numbers.by_layer.length;
  const high = Math.max(...numbers.by_layer.map((cost) => cost ?? 0), ...layers.slice(1).map((one) => one.word ?? 0)) || 1;
  const toY = (value) => box.bottom - (value / (1.05 * high)) * (box.bottom - box.top);
  const step = (box.right - box.left) / count;
  const parts = [shape("text", { x: 0, y: 11, class: "quiet" }, "this patch in every layer")];
  for (const tick of ticks(0, 1.05 * high, false, 3)) {
    const y = toY(tick);
    parts.push(shape("line", { x1: box.left, x2: box.right, y1: y, y2: y, stroke: "var(--mirlib-line)" }));
    parts.push(shape("text", { x: box.left - 5, y: y + 4, "text-anchor": "end", class: "quiet" }, number(tick)));
  }
  const every = Math.ceil(count / 10);
  numbers.by_layer.forEach((cost, i) => {
    const x = box.left + i * step;
    const chosen = layer === i + 1;
    if (cost !== null) {
      const fill = layer === 0 || chosen ? "var(--mirlib-warm)" : "var(--mirlib-quiet)";
      const bar = { x: x + 0.12 * step, width: 0.76 * step, y: toY(cost), height: box.bottom - toY(cost), fill };
      parts.push(shape("rect", bar));
    } else {
      parts.push(shape("text", { x: x + step / 2, y: box.bottom - 3, "text-anchor": "middle", class: "quiet" }, "–"));
    }
    const word = layers[i + 1].word;
    if (word !== null) {
      const line = { x1: x, x2: x + step, y1: toY(word), y2: toY(word), stroke: "var(--mirlib-cool)", "stroke-width": 2 };
      parts.push(shape("line", line));
    }
    if (i % every === 0 || chosen) {
      const at = { x: x + step / 2, y: box.bottom + 13, "text-anchor": "middle", class: chosen ? "" : "quiet" };
      parts.push(shape("text", at, i + 1));
    }
  });
  const middle = (box.left + box.right) / 2;
  parts.push(shape("text", { x: middle, y: CHART_HEIGHT - 2, "text-anchor": "middle", class: "quiet" }, "layer (line: a word)"));
  svg.replaceChildren(...parts);
}

function render({ model, el }) {
  const pictures = model.get("pictures");
  const layers = model.get("layers");
  const set = (values) => {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
  };
  const dearest = (picture, layer) => {
    const costs = picture.cells.map((cell, i) =>
      picture.rows > 0 && cell < 0 ? -1 : (reading(picture, layers, layer, i).cost ?? -1),
    );
    return costs.indexOf(Math.max(...costs));
  };

  const label = (picture, i) => {
    const place = i === 0 ? ", dearest" : i === pictures.length - 1 ? ", cheapest" : "";
    return `${picture.name} (${number(picture.mean)} a patch${place})`;
  };
  const chooser = choice(
    "Picture",
    [["", pictures.map((picture, i) => [String(i), label(picture, i)])]],
    () => String(model.get("picture")),
    (value) => set({ picture: Number(value), patch: dearest(pictures[Number(value)], model.get("layer")) }),
  );
  chooser.input.name = "picture";

  const stage = shape("svg", { class: "mirlib-stage", tabindex: 0, role: "group", "aria-roledescription": "map of patches" });
  const title = shape("title");
  const image = shape("image", { x: 0, y: 0, preserveAspectRatio: "none" });
  const tiles = shape("g");
  const mark = shape("g", { "pointer-events": "none" });
  stage.append(title, image, tiles, mark);
  const legend = shape("svg", { viewBox: `0 0 ${CHART_WIDTH} 58`, "aria-hidden": "true" });
  const chart = shape("svg", { viewBox: `0 0 ${CHART_WIDTH} ${CHART_HEIGHT}`, "aria-hidden": "true" });
  const cells = {};
  const row = (name, text) => {
    cells[name] = element("td", { class: "mirlib-number", "data-name": name });
    return element("tr", {}, element("th", { scope: "row" }, text), cells[name]);
  };
  const head = element("th", { scope: "col", colspan: 2 });
  const table = element(
    "table",
    {},
    element("thead", {}, element("tr", {}, head)),
    element("tbody", {}, row("cost", "cost"), row("words", "times the cost of a word"), row("share", "share of the distance")),
  );
  const note = element("p", { class: "mirlib-note" });
  const spoken = announcer();
  const layerName = (layer) => (layer === 0 ? "all" : String(layer));

  let drawn = null; // which picture and layer the tiles show
  const refresh = () => {
    const state = Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
    const picture = pictures[state.picture];
    const scale = layers[state.layer];
    const longest = Math.max(picture.width, picture.height);
    const size = [(192 * picture.width) / longest, (192 * picture.height) / longest];
    const places = boxes(picture, size);
    const strip = picture.rows === 0 ? 4 + (size[0] / STRIP) * Math.ceil(picture.cells.length / STRIP) : 0;
    const key = JSON.stringify([state.picture, state.layer, state.coloured]);
    if (key !== drawn) {
      drawn = key;
      stage.setAttribute("viewBox", `-2 -2 ${size[0] + 4} ${size[1] + strip + 4}`);
      image.setAttribute("href", picture.address);
      image.setAttribute("width", size[0]);
      image.setAttribute("height", size[1]);
      image.style.filter = state.coloured && picture.rows > 0 ? "grayscale(1)" : "";
      tiles.replaceChildren(
        ...places.flatMap((box, i) => {
          if (box === null) return [];
          const { cost } = reading(picture, layers, state.layer, i);
          const fill = cost === null ? "#808080" : colour(cost / scale.top);
          const strength = picture.rows === 0 ? 1 : state.coloured ? 0.72 : 0;
          const [x, y, width, height] = box;
          return [shape("rect", { x, y, width, height, fill, "fill-opacity": strength, "data-patch": i })];
        }),
      );
      drawLegend(legend, scale, state.coloured);
    }
    const [x, y, width, height] = places[state.patch] ?? [0, 0, 0, 0];
    mark.replaceChildren(
      shape("rect", { x, y, width, height, fill: "none", stroke: "#000", "stroke-width": 3.4 }),
      shape("rect", { x, y, width, height, fill: "none", stroke: "#fff", "stroke-width": 1.7 }),
    );
    const numbers = reading(picture, layers, state.layer, state.patch);
    drawChart(chart, numbers, layers, state.layer);
    const cell = picture.cells[state.patch];
    const place =
      picture.rows === 0
        ? `patch ${state.patch + 1} of ${picture.cells.length}`
        : `patch in row ${Math.floor(cell / picture.columns) + 1}, column ${(cell % picture.columns) + 1}`;
    const where = state.layer === 0 ? "all layers" : `layer ${state.layer}`;
    head.textContent = `${place[0].toUpperCase()}${place.slice(1)}, ${where}`;
    const dropped = numbers.cost === null;
    cells.cost.textContent = dropped ? "dropped" : number(Number(numbers.cost.toPrecision(3)));
    cells.words.textContent = numbers.words === null ? "–" : `${number(Number(numbers.words.toPrecision(2)))} ×`;
    cells.share.textContent = dropped ? "–" : `${number(Number((100 * numbers.share).toPrecision(2)))} %`;
    const unplaced = picture.rows === 0 ? 0 : picture.cells.filter((one) => one < 0).length;
    note.textContent =
      (picture.rows === 0 ? "Where the patches stand in the picture is not known: they are drawn in order below it. " : "") +
      (unplaced ? `${unplaced} more rows stand for no single place and are not drawn. ` : "") +
      (dropped ? "The outlier rule drops this patch in this layer. " : "") +
      "A word is moved onto other words, a patch onto all words.";
    title.textContent = `${picture.name}, ${picture.rows || 1} by ${picture.columns || picture.cells.length} patches`;
    const sentence = dropped
      ? `${place}, ${where}: dropped by the outlier rule.`
      : `${place}, ${where}: cost ${cells.cost.textContent}, ${cells.words.textContent} a word's, ` +
        `${cells.share.textContent} of the distance.`;
    stage.setAttribute("aria-label", `Patches of ${picture.name}. Arrow keys move. ${sentence}`);
    spoken.say(sentence);
    chooser.refresh();
    // All the numbers, unrounded, for whoever wants to check them.
    root.dataset.numbers = JSON.stringify(numbers);
  };

  const point = (event) => {
    const patch = document.elementFromPoint(event.clientX, event.clientY)?.dataset?.patch;
    if (patch !== undefined && Number(patch) !== model.get("patch")) set({ patch: Number(patch) });
  };
  stage.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "touch") point(event);
  });
  stage.addEventListener("pointerdown", point);
  stage.addEventListener("keydown", (event) => {
    if (!["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    set({ patch: neighbour(pictures[model.get("picture")], model.get("patch"), event.key) });
  });

  const show = element("div", {}, chooser.node, stage);
  const controls = element(
    "div",
    {},
    table,
    slider(model, "layer", { label: "Layer (all: their sum)", min: 0, max: layers.length - 1, step: 1, show: layerName }),
    legend,
    chart,
    toggle(model, "coloured", { label: "Colour the patches" }),
    note,
    spoken.node,
  );
  const frame = element("div", { class: "mirlib-frame" }, show, controls);
  const root = element(
    "div",
    { class: "mirlib-widget mirlib-costs", role: "group", "aria-label": "Costs of patches" },
    frame,
  );
  for (const name of TRAITS) model.on(`change:${name}`, refresh);
  refresh();
  el.append(root);
  return () => {
    for (const name of TRAITS) model.off(`change:${name}`, refresh);
  };
}

export default { render };
