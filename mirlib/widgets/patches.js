// Pictures under a grid of patches, one of which is chosen: what the widgets of costs and of words share.

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
  for (const tick of ticks(0, scale.top, 4)) {
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
  parts.push(...rulings(0, 1.05 * high, 3, toY, box));
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

// A picture under its patches; one of them is chosen with the pointer, a touch or the arrow keys.
function patchStage(choose) {
  const node = shape("svg", { class: "mirlib-stage", tabindex: 0, role: "group", "aria-roledescription": "map of patches" });
  const title = shape("title");
  const image = shape("image", { x: 0, y: 0, preserveAspectRatio: "none" });
  const tiles = shape("g");
  const words = shape("g", { "pointer-events": "none", "aria-hidden": "true" });
  const mark = shape("g", { "pointer-events": "none" });
  node.append(title, image, tiles, words, mark);
  let [picture, places, chosen] = [null, [], 0];

  // `fills`: a colour for each patch, laid over the picture with a strength from 0 to 1. `texts`: a word for each, or none.
  function draw(shown, { name, fills, strength, grey = false, texts = [] }) {
    picture = shown;
    const longest = Math.max(picture.width, picture.height);
    const size = [(192 * picture.width) / longest, (192 * picture.height) / longest];
    places = boxes(picture, size);
    const strip = picture.rows === 0 ? 4 + (size[0] / STRIP) * Math.ceil(picture.cells.length / STRIP) : 0;
    node.setAttribute("viewBox", `-2 -2 ${size[0] + 4} ${size[1] + strip + 4}`);
    title.textContent = name;
    image.setAttribute("href", picture.address);
    image.setAttribute("width", size[0]);
    image.setAttribute("height", size[1]);
    image.style.filter = grey && picture.rows > 0 ? "grayscale(1)" : "";
    const each = (make) => places.flatMap((box, i) => (box === null ? [] : [make(box, i)]));
    tiles.replaceChildren(
      ...each(([x, y, width, height], i) => {
        const cover = picture.rows === 0 ? 1 : strength;
        return shape("rect", { x, y, width, height, fill: fills[i], "fill-opacity": cover, "data-patch": i });
      }),
    );
    words.replaceChildren(
      ...(texts.length ? each(([x, y, width, height], i) => wordIn(texts[i], x + width / 2, y + height / 2, width - 1)) : []),
    );
  }

  function point(patch, about) {
    chosen = patch;
    const [x, y, width, height] = places[patch] ?? [0, 0, 0, 0];
    mark.replaceChildren(
      shape("rect", { x, y, width, height, fill: "none", stroke: "#000", "stroke-width": 3.4 }),
      shape("rect", { x, y, width, height, fill: "none", stroke: "#fff", "stroke-width": 1.7 }),
    );
    node.setAttribute("aria-label", about);
  }

  const hit = (event) => {
    const patch = document.elementFromPoint(event.clientX, event.clientY)?.dataset?.patch;
    if (patch !== undefined && Number(patch) !== chosen) choose(Number(patch));
  };
  node.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "touch") hit(event);
  });
  node.addEventListener("pointerdown", hit);
  node.addEventListener("keydown", (event) => {
    if (!["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    if (picture) choose(neighbour(picture, chosen, event.key));
  });
  return { node, draw, point };
}

// A word that is squeezed where it is wider than its patch.
function wordIn(word, x, y, width) {
  const at = { x, y: y + 2.5, "text-anchor": "middle", class: "mirlib-word" };
  if (word.length * 4.1 > width) Object.assign(at, { textLength: width, lengthAdjust: "spacingAndGlyphs" });
  return shape("text", at, word);
}

function placeOf(picture, patch) {
  if (picture.rows === 0) return `patch ${patch + 1} of ${picture.cells.length}`;
  const cell = picture.cells[patch];
  return `patch in row ${Math.floor(cell / picture.columns) + 1}, column ${(cell % picture.columns) + 1}`;
}

const capital = (text) => `${text[0].toUpperCase()}${text.slice(1)}`;

// What a patch costs: a table, the scale of colours, and the patch in every layer.
function costPanel() {
  const legend = shape("svg", { viewBox: `0 0 ${CHART_WIDTH} 58`, "aria-hidden": "true" });
  const chart = shape("svg", { viewBox: `0 0 ${CHART_WIDTH} ${CHART_HEIGHT}`, "aria-hidden": "true" });
  const cells = {};
  const row = (name, text) => numberRow(cells, name, text);
  const head = element("th", { scope: "col", colspan: 2 });
  const table = element(
    "table",
    {},
    element("thead", {}, element("tr", {}, head)),
    element("tbody", {}, row("cost", "cost"), row("words", "times the cost of a word"), row("share", "share of the distance")),
  );

  // Returns the numbers and a sentence that says them.
  function show(picture, layers, layer, patch, coloured) {
    const numbers = reading(picture, layers, layer, patch);
    drawLegend(legend, layers[layer], coloured);
    drawChart(chart, numbers, layers, layer);
    const place = placeOf(picture, patch);
    const where = layer === 0 ? "all layers" : `layer ${layer}`;
    head.textContent = `${capital(place)}, ${where}`;
    const dropped = numbers.cost === null;
    cells.cost.textContent = dropped ? "dropped" : number(Number(numbers.cost.toPrecision(3)));
    cells.words.textContent = numbers.words === null ? "–" : `${number(Number(numbers.words.toPrecision(2)))} ×`;
    cells.share.textContent = dropped ? "–" : `${number(Number((100 * numbers.share).toPrecision(2)))} %`;
    const sentence = dropped
      ? `${place}, ${where}: dropped by the outlier rule.`
      : `${place}, ${where}: cost ${cells.cost.textContent}, ${cells.words.textContent} a word's, ` +
        `${cells.share.textContent} of the distance.`;
    return { numbers, sentence };
  }
  return { table, legend, chart, show };
}

const costColours = (picture, layers, layer) =>
  picture.cells.map((_, i) => {
    const { cost } = reading(picture, layers, layer, i);
    return cost === null ? "#808080" : colour(cost / layers[layer].top);
  });
