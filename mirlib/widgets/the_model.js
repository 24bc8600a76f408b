// Two clouds of tokens of a model that runs in the page.
const [WIDTH, HEIGHT] = [480, 340];
const CURVE = { width: 300, height: 190, left: 40, right: 10, top: 26, bottom: 34 }; // in the narrow column
const LAYERS = 8;
const SETTINGS = ["input", "projector", "gain"];
const INPUT_NAMES = {
  scenes: "scenes, as in training",
  photographs: "photographs, never seen",
  black: "black pictures",
  noise: "pictures of noise",
  random: "random tokens of the same lengths",
  drawn: "a scene that you draw",
};
const MADE = { black: "six black squares", noise: "six squares of noise", random: "no pictures: random vectors" }; // by the worker
const GREYS = [80, 92, 104, 116, 128, 140]; // behind a scene that a reader draws: it is shown six times

const PROJECTOR_NAMES = { trained: "trained on 16,384 captions", fresh: "fresh: random weights" };

// The smallest of a few fixed windows around the origin that shows nearly all points.
function reachOf(points) {
  const sizes = points.map(([x, y]) => Math.max(Math.abs(x), Math.abs(y) * (WIDTH / HEIGHT))).sort((a, b) => a - b);
  return 2 ** Math.max(-1, Math.ceil(Math.log2(sizes[Math.floor(0.98 * (sizes.length - 1))] * 1.1)));
}

// The window is never smaller than that of the untouched model, so that what shrinks looks smaller.
function drawClouds(svg, { vision, text }, untouched) {
  const reach = Math.max(...[{ vision, text }, untouched].map((one) => reachOf([...one.vision, ...one.text])));
  const unit = WIDTH / (2 * reach);
  const toX = (x) => WIDTH / 2 + x * unit;
  const toY = (y) => HEIGHT / 2 - y * unit;
  const axis = { stroke: "var(--mirlib-line)", "stroke-width": 1 };
  const parts = [
    shape("line", { x1: 0, x2: WIDTH, y1: toY(0), y2: toY(0), ...axis }),
    shape("line", { x1: toX(0), x2: toX(0), y1: 0, y2: HEIGHT, ...axis }),
  ];
  for (const tick of [-0.5, 0.5]) {
    const x = toX(tick * reach);
    parts.push(shape("line", { x1: x, x2: x, y1: toY(0) - 4, y2: toY(0) + 4, ...axis }));
    parts.push(shape("text", { x, y: HEIGHT - 6, "text-anchor": "middle", class: "quiet" }, number(tick * reach)));
  }
  for (const [x, y] of text) {
    parts.push(shape("circle", { cx: toX(x), cy: toY(y), r: 2.2, fill: "var(--mirlib-cool)", "fill-opacity": 0.6 }));
  }
  for (const [x, y] of vision) {
    const place = `M${toX(x)} ${toY(y) - 3.2}l3 5.4h-6z`;
    parts.push(shape("path", { d: place, fill: "var(--mirlib-warm)", "fill-opacity": 0.75 }));
  }
  parts.push(shape("circle", { cx: 14, cy: 16, r: 6, fill: "var(--mirlib-cool)" }));
  parts.push(shape("text", { x: 26, y: 21 }, "words"));
  parts.push(shape("path", { d: "M14 31l7 12h-14z", fill: "var(--mirlib-warm)" }));
  parts.push(shape("text", { x: 26, y: 43 }, "pieces of pictures"));
  svg.replaceChildren(svg.querySelector("title"), ...parts);
}

// Distances by layer: those of now, and dashed those of the untouched model.
function drawCurve(svg, now, untouched, layer) {
  const { width, height, left, right, top, bottom } = CURVE;
  const most = Math.max(...now, ...untouched);
  const ceiling = [1, 2, 5].flatMap((s) => [s, 10 * s, 100 * s]).sort((a, b) => a - b).find((s) => s >= most) ?? most;
  const toX = (k) => left + ((width - left - right) * (k - 1)) / (now.length - 1);
  const toY = (value) => height - bottom - ((height - top - bottom) * value) / ceiling;
  const line = (values, extra) =>
    shape("path", { d: values.map((v, i) => `${i ? "L" : "M"}${toX(i + 1)} ${toY(v)}`).join(""), fill: "none", ...extra });
  const quiet = { stroke: "var(--mirlib-line)", "stroke-width": 1 };
  const parts = [shape("line", { x1: left, x2: width - right, y1: toY(0), y2: toY(0), ...quiet })];
  for (const tick of [0, ceiling / 2, ceiling]) {
    parts.push(shape("text", { x: left - 6, y: toY(tick) + 4, "text-anchor": "end", class: "quiet" }, number(tick)));
  }
  now.forEach((_, i) =>
    parts.push(shape("text", { x: toX(i + 1), y: height - bottom + 15, "text-anchor": "middle", class: "quiet" }, String(i + 1))),
  );
  parts.push(shape("text", { x: width - right, y: height - 3, "text-anchor": "end", class: "quiet" }, "layer"));
  parts.push(shape("text", { x: width - right, y: top + 6, "text-anchor": "end" }, "distance (dashed: untouched)"));
  parts.push(line(untouched, { stroke: "var(--mirlib-quiet)", "stroke-width": 1.5, "stroke-dasharray": "5 4" }));
  parts.push(line(now, { stroke: "var(--mirlib-warm)", "stroke-width": 2.5 }));
  if (layer > 0) parts.push(shape("circle", { cx: toX(layer), cy: toY(now[layer - 1]), r: 5, fill: "var(--mirlib-warm)" }));
  svg.replaceChildren(svg.querySelector("title"), ...parts);
}

// A guess first, the answer after it: two settings are measured, and the reader says which has the lower MIR.
const GUESSES = [
  {
    ask: "Which of the two brings pictures nearer to words?",
    options: [
      ["The projector that was trained", {}],
      ["A projector of random weights", { projector: "fresh" }],
    ],
    then: ([trained, fresh]) =>
      "These are values of MIR, and lower is nearer: the projector that has learned nothing wins. Its vectors are " +
      `${fresh.lengths[1].toFixed(2)} times as long as those of words, the trained one's ${trained.lengths[1].toFixed(2)} times.`,
  },
  {
    ask: "And of these two, through the trained projector?",
    options: [
      ["Scenes, of which it can speak", {}],
      ["Black pictures, which show nothing", { input: "black" }],
    ],
    then: () => "Nothing to see, and a smaller gap. So a small gap does not mean that a picture was understood.",
  },
  {
    ask: "What is nearer to words: what the trained projector puts out, or the same made half as long?",
    options: [
      ["Made half as long", { gain: 0.5 }],
      ["As it is", {}],
    ],
    then: () => "Much of this distance is length. Now set the gain to 0 yourself. Are zeros nearest of all?",
  },
];

// A scene of four places: a press puts the chosen thing there, and a second one takes it away.
function sceneBoard(model) {
  const world = model.get("world");
  const brush = { shape: "circle", colour: "red" };
  const list = (name, words) => choice(name, [["", words.map((word) => [word, word])]], () => brush[name], (value) => (brush[name] = value)).node;
  const held = (cell) => model.get("scene").find((thing) => thing.cell === cell);
  function put(cell) {
    const [others, before] = [model.get("scene").filter((thing) => thing.cell !== cell), held(cell)];
    const again = before && before.shape === brush.shape && before.colour === brush.colour;
    assign(model, { scene: again ? others : [...others, { ...brush, cell }] });
  }
  const places = CELLS.map((cell) => pushButton("", () => put(cell)));
  const board = element("div", { class: "mirlib-board", role: "group", "aria-label": "The scene" }, ...places);
  const canvas = element("canvas", { width: PICTURE, height: PICTURE });
  const noise = new Float32Array(bytesOf(world.noise).buffer);
  // The scene on six greys, each time with other noise.
  const pixels = (scene) => {
    const things = scene.map((thing) => ({ ...thing, size: "large", right: 0, down: 0 }));
    return GREYS.map((grey, i) => paint(things, grey, noise.map((_, at) => noise[(at + 301 * i) % noise.length]), world));
  };
  const address = (one) => {
    putPixels(canvas, one);
    return canvas.toDataURL();
  };
  function refresh() {
    board.style.backgroundImage = `url(${address(pixels(model.get("scene"))[2])})`;
    CELLS.forEach((cell, i) => {
      const { colour, shape: form } = held(cell) ?? {};
      places[i].setAttribute("aria-label", `${cell}: ${form ? `${colour} ${form}` : "empty"}`);
    });
  }
  model.on("change:scene", refresh);
  refresh();
  const lists = [list("shape", world.shapes), list("colour", Object.keys(world.colours))];
  const note = element("p", { class: "mirlib-note" }, "Press a quarter of the picture to put this there, and again to take it away. The model sees the scene on six greys.");
  return { node: element("div", { class: "mirlib-draw" }, board, element("div", {}, ...lists, note)), pixels, address };
}

function render({ model, el }) {
  const untouched = { input: Object.keys(model.get("inputs"))[0], projector: "trained", gain: 1 };
  const read = () => Object.fromEntries(asked().map((name) => [name, model.get(name)]));
  const asked = () => (model.get("input") === "drawn" ? [...SETTINGS, "scene"] : SETTINGS);
  const board = model.get("world").shapes && sceneBoard(model);
  const queue = `measure ${serial()}`; // so that no widget drops what another one waits for
  const known = new Map(); // what was measured, by settings
  const waits = () => shape("title", {}, "Drawn as soon as the model has run.");
  const middle = { x: WIDTH / 2, y: HEIGHT / 2, "text-anchor": "middle", class: "quiet" };
  const patience = shape("text", middle, "The model reads six pictures and six texts …");
  const clouds = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "mirlib-plot" }, waits(), patience);
  const curve = shape("svg", { viewBox: `0 0 ${CURVE.width} ${CURVE.height}`, role: "img" }, waits());
  const bar = element("progress", { max: 1, value: 0, "aria-label": "Progress" });
  const status = element("p", { class: "mirlib-note", role: "status" }, "The model comes with the page: 5 MB.");
  const cells = {};
  const rows = [
    ["mir", "MIR, all layers"],
    ["distance", "distance in this layer"],
    ["length", "length in this layer, vision / text"],
  ].map((line) => numberRow(cells, ...line));
  const spoken = announcer();
  const pictures = element("div", { class: "mirlib-strip" });
  const offered = Object.entries(INPUT_NAMES).filter(([name]) => name in model.get("inputs") || name in MADE || (board && name === "drawn"));
  const controls = element(
    "div",
    {},
    traitChoice(model, "input", "What goes in", [["", offered]]),
    traitChoice(model, "projector", "Projector", [["", Object.entries(PROJECTOR_NAMES)]]),
    slider(model, "gain", { label: "Gain of the projector", min: 0, max: 4, step: 0.05 }),
    slider(model, "layer", {
      label: "Layer",
      min: 0,
      max: LAYERS,
      step: 1,
      show: (k) => (k === 0 ? "what enters layer 1" : k === LAYERS ? `${k}, the last` : String(k)),
    }),
    element("div", { class: "mirlib-buttons" }, setter(model, "Reset", { ...untouched, layer: model.get("layer") })),
  );

  const engine = startEngine(model);
  const pixels = {};
  const key = (settings) => JSON.stringify(settings);
  const progress = (part) => {
    bar.value = part;
  };
  async function measure(settings) {
    await engine.load(progress);
    const named = settings.input in model.get("inputs") ? settings.input : untouched.input;
    pixels[named] ??= await Promise.all(model.get("inputs")[named].map(pixelsOf));
    const shown = settings.scene ? board.pixels(settings.scene) : pixels[named];
    const given = { pictures: shown, texts: model.get("texts"), settings, planes: "fixed", queue };
    known.set(key(settings), await engine.ask("measure", given, progress));
  }
  // One after the other, since the engine drops what a later wish overtakes. Null if nobody wants it any more.
  let turn = Promise.resolve();
  function measured(settings, wanted = () => true) {
    const mine = turn.then(async () => {
      if (!known.has(key(settings)) && wanted()) await measure(settings);
      return known.get(key(settings)) ?? null;
    });
    turn = mine.catch(() => {});
    return mine;
  }

  function show(found, settings) {
    const layer = model.get("layer");
    const base = known.get(key(untouched));
    drawClouds(clouds, found.points[layer], base.points[layer]);
    const totals = ({ layers: all }) => all.map((one) => one.total);
    drawCurve(curve, totals(found), totals(base), layer);
    const at = found.layers[layer - 1];
    cells.mir.textContent = found.value.toFixed(2).replace("-", "−");
    cells.mir.dataset.value = String(found.value);
    cells.distance.textContent = at ? number(at.total) : "–";
    cells.distance.dataset.value = String(at?.total ?? "");
    cells.length.textContent = number(found.lengths[layer]);
    cells.length.dataset.value = String(found.lengths[layer]);
    const sentence =
      `MIR ${cells.mir.textContent}. Layer ${layer}: distance ${cells.distance.textContent}, vision tokens ` +
      `${cells.length.textContent} times as long as words.`;
    clouds.querySelector("title").textContent = `Words and pieces of pictures in layer ${layer}. ${sentence}`;
    curve.querySelector("title").textContent = `Distance by layer, dashed for the untouched model. ${sentence}`;
    spoken.say(sentence);
  }

  let shown = null;
  async function refresh() {
    const settings = read();
    const sources = settings.scene ? board.pixels(settings.scene).map(board.address) : (model.get("inputs")[settings.input] ?? []);
    const named = INPUT_NAMES[settings.input] ?? settings.input;
    pictures.replaceChildren(
      ...sources.map((src, i) => element("img", { src, alt: `${named}: ${i + 1}`, width: 48, height: 48, class: "dark-light" })),
      sources.length ? "" : element("span", { class: "mirlib-note" }, MADE[settings.input]),
    );
    board?.node.toggleAttribute("hidden", !settings.scene);
    root.setAttribute("aria-busy", "true");
    const wanted = () => key(read()) === key(settings);
    try {
      await measured(untouched);
      const found = await measured(settings, wanted);
      if (!found || !wanted()) return; // a later wish has come, and ends the waiting
      shown = found;
      show(found, settings);
      bar.value = 1;
      status.textContent =
        settings.gain === 0
          ? `Zeros: MIR ${found.value.toFixed(2)}, and ${known.get(key(untouched)).value.toFixed(2)} untouched. Shorter was nearer, but ` +
            "zeros are all alike, and words are not: the distance counts that, too. In layer 0 you see them; layer 1 already writes over them."
          : "Read by the model in this page, with six texts.";
    } catch (error) {
      status.textContent = `The model does not answer: ${error.message}.`;
    }
    root.setAttribute("aria-busy", "false");
  }

  // Guess, then reveal.
  const quiz = element("div", { class: "mirlib-guesses" });
  function pose(index) {
    const { ask, options, then } = GUESSES[index];
    const answer = element("p", { role: "status" });
    const buttons = options.map(([label], choice) => {
      const button = element("button", { type: "button" }, label);
      // The button that was pressed stays, so that a keyboard does not lose its place.
      const guess = async () => {
        buttons.forEach((one) => (one.disabled = one !== button));
        button.setAttribute("aria-pressed", "true");
        answer.textContent = "The model reads …";
        const values = [];
        try {
          for (const [, change] of options) values.push(await measured({ ...untouched, ...change }));
        } catch (error) {
          pose(index);
          quiz.querySelector("[role=status]").textContent = `The model does not answer: ${error.message}. Try again.`;
          return;
        }
        const [first, second] = values.map((found) => found.value);
        const lower = first < second ? 0 : 1;
        const numbers = options.map(([name], i) => `${name}: ${values[i].value.toFixed(2)}`).join(". ");
        answer.textContent = `${choice === lower ? "Yes." : "No."} ${numbers}. ${then(values)}`;
        const changed = options[0][1] && Object.keys(options[0][1]).length ? options[0][1] : options[1][1];
        assign(model, { ...untouched, ...changed });
        if (index + 1 < GUESSES.length) {
          const next = pushButton("Next guess", () => {
            pose(index + 1);
            quiz.querySelector("button").focus({ preventScroll: true });
            quiz.scrollIntoView({ block: "nearest" });
          });
          quiz.append(element("div", { class: "mirlib-buttons" }, next));
        }
      };
      button.addEventListener("click", guess, { once: true });
      return button;
    });
    const title = element("p", { class: "mirlib-guess" }, `Guess: ${ask}`);
    quiz.replaceChildren(title, element("div", { class: "mirlib-buttons" }, ...buttons), answer);
  }
  pose(0);

  model.on("change:layer", () => shown && show(shown, read()));
  const figures = element("div", {}, clouds, board?.node ?? "", pictures, status, bar);
  const side = element("div", {}, element("table", {}, element("tbody", {}, ...rows)), controls, curve, spoken.node);
  const above = element("div", { class: "mirlib-wide" }, quiz);
  const frame = element("div", { class: "mirlib-frame" }, above, figures, side);
  const root = element("div", { class: "mirlib-widget", role: "group", "aria-label": "The model in the page" }, frame);
  el.append(root);
  refresh();
  return watch(model, [...SETTINGS, "scene"], refresh);
}

export default { render };
