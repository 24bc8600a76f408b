// Train the projector of the miniature in the page, and watch its loss and its MIR.
const CHART = { width: 480, height: 200, left: 40, right: 14, top: 28, bottom: 34 };
const [SLOWEST, FASTEST] = [5e-4, 7]; // the lowest learning rate, and how often it can be doubled
const NEAR = 8; // steps over which the loss is averaged, since one batch is few captions
const signed = (value, digits) => value.toFixed(digits).replace("-", "−");

// The loss of a step, with those of up to seven steps before it.
const smooth = (points) => points.map(([step], i) => [step, mean(points.slice(Math.max(0, i + 1 - NEAR), i + 1).map(([, y]) => y))]);
const lossOf = (run) => (run.losses.length ? smooth(run.losses).at(-1)[1] : null);

// One quantity by step: this run in colour, the run before in grey and dashed. What was measured is marked by dots.
function drawChart(svg, { label, steps, runs, colour, dots, faint, from, most }) {
  const { width, height, left, right, top, bottom } = CHART;
  const shown = runs.flatMap(({ points }) => points.map(([, y]) => y));
  const low = Math.min(from, Math.floor(2 * Math.min(...shown, from)) / 2);
  const high = Math.max(most, Math.ceil(2 * Math.max(...shown, most)) / 2);
  const toX = (step) => left + ((width - left - right) * step) / steps;
  const toY = (y) => height - bottom - ((height - top - bottom) * (Math.min(y, high) - low)) / (high - low);
  const parts = rulings(low, high, 5, toY, { left, right: width - right });
  for (let step = 0; step <= steps; step += steps / 4) {
    parts.push(shape("text", { x: toX(step), y: height - bottom + 15, "text-anchor": "middle", class: "quiet" }, number(step)));
  }
  parts.push(shape("text", { x: width - right, y: height - 3, "text-anchor": "end", class: "quiet" }, "step"));
  parts.push(shape("text", { x: left, y: 16 }, label));
  runs.forEach(({ points }, which) => {
    const now = which === runs.length - 1;
    const stroke = now ? `var(--mirlib-${colour})` : "var(--mirlib-quiet)";
    if (faint && now) {
      points.forEach(([x, y]) => parts.push(shape("circle", { cx: toX(x), cy: toY(y), r: 1.8, fill: stroke, "fill-opacity": 0.45 })));
    }
    const line = faint ? smooth(points) : points;
    const d = line.map(([x, y], i) => `${i ? "L" : "M"}${toX(x)} ${toY(y)}`).join("");
    const drawn = { d, fill: "none", stroke, "stroke-width": now ? 2.5 : 1.5, "data-run": now ? "now" : "before" };
    if (d) parts.push(shape("path", now ? drawn : { ...drawn, "stroke-dasharray": "5 4" }));
    if (dots) line.forEach(([x, y]) => parts.push(shape("circle", { cx: toX(x), cy: toY(y), r: now ? 4 : 2.5, fill: stroke })));
  });
  svg.replaceChildren(svg.querySelector("title"), ...parts);
}

function render({ model, el }) {
  const engine = startEngine(model);
  const queue = `train ${serial()}`;
  const steps = model.get("steps");
  let [run, before, busy] = [null, null, false];

  const plot = (label) => shape("svg", { viewBox: `0 0 ${CHART.width} ${CHART.height}`, role: "img", class: "mirlib-plot" }, shape("title", {}, label));
  const charts = { loss: plot("Loss by step: empty as yet."), mir: plot("MIR by step: empty as yet.") };
  const bar = element("progress", { max: steps, value: 0, "aria-label": "Steps done" });
  const status = element("p", { class: "mirlib-note", role: "status" }, "The model comes with the page, 5 MB, as soon as you start it.");
  const clock = element("p", { class: "mirlib-note" });
  const spoken = announcer();

  // What the reader sets: for the run that starts next.
  const doubled = {
    get: () => Math.round(Math.log2(model.get("learning_rate") / SLOWEST)),
    set: (_, times) => model.set("learning_rate", Number((SLOWEST * 2 ** times).toPrecision(3))),
    save_changes: () => model.save_changes(),
    on: (_, listener) => model.on("change:learning_rate", listener),
  };
  const rateText = (rate) => number(rate).replace(/^0/, "");
  const rate = slider(doubled, "learning_rate", {
    label: "Learning rate",
    min: 0,
    max: FASTEST,
    step: 1,
    show: (times) => rateText(Number((SLOWEST * 2 ** times).toPrecision(3))),
  });
  const warmup = slider(model, "warmup_steps", {
    label: "Warm-up",
    min: 1,
    max: 32,
    step: 1,
    show: (count) => `${count} ${count === 1 ? "step" : "steps"}`,
  });
  const button = pushButton("Train", () => (busy ? stop() : start()));

  // The numbers of both runs.
  const LINES = [
    ["rate", "learning rate", ({ rate: highest }) => rateText(highest)],
    ["warmup", "warm-up, steps", ({ warmup: count }) => number(count)],
    ["steps", "steps done", ({ losses }) => number(losses.length)],
    ["loss", "loss, mean of the last 8", (one) => (lossOf(one) === null ? "–" : lossOf(one).toFixed(2))],
    ["mir", "MIR, first → now", ({ probes }) => span(probes, "mir")],
    ["length", "length in layer 1, vision / text", ({ probes }) => span(probes, "length")],
  ];
  const span = (probes, name) =>
    probes.length ? [...new Set([probes[0], probes.at(-1)])].map((one) => signed(one[name], 2)).join(" → ") : "–";
  const body = element("tbody");
  const heads = ["", "this run", "the run before"].map((text) => element(text ? "th" : "td", text ? { scope: "col" } : {}, text));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body);

  // What it says of a picture that it has never seen.
  const [address] = model.get("pictures");
  const picture = element("img", { src: address, alt: `Held-out picture: ${model.get("truth")}`, width: 96, height: 96, class: "dark-light" });
  const says = element("td", { "data-name": "caption" });
  const said = element("td", { "data-name": "caption-before" });
  const words = [
    ["the truth", element("td", {}, model.get("truth"))],
    ["this run", says],
    ["the run before", said],
  ].map(([who, cell]) => element("tr", {}, element("th", { scope: "row" }, who), cell));

  function show() {
    const runs = [before, run].filter(Boolean);
    const losses = { points: (one) => one.losses, label: "loss, nats a token", colour: "cool", faint: true, from: 0, most: 3 };
    const probes = { points: (one) => one.probes.map(({ step, mir }) => [step, mir]), label: "MIR", colour: "warm", dots: true, from: 0.5, most: 2 };
    for (const [name, { points, ...look }] of Object.entries({ loss: losses, mir: probes })) {
      drawChart(charts[name], { ...look, steps, runs: runs.map((one) => ({ points: points(one) })) });
    }
    body.replaceChildren(
      ...LINES.map(([name, label, text]) =>
        element(
          "tr",
          {},
          element("th", { scope: "row" }, label),
          ...[run, before].map((one, i) =>
            element("td", { class: "mirlib-number", "data-name": i ? `${name}-before` : name }, one ? text(one) : "–"),
          ),
        ),
      ),
    );
    says.textContent = run?.probes.at(-1)?.caption ?? "–";
    said.textContent = before?.probes.at(-1)?.caption ?? "–";
    if (!run) return;
    const loss = lossOf(run) === null ? "" : ` Loss ${lossOf(run).toFixed(2)}.`;
    const sentence = `Learning rate ${rateText(run.rate)}, warm-up ${run.warmup}, step ${run.losses.length} of ${steps}.${loss} MIR ${span(run.probes, "mir")}.`;
    charts.loss.querySelector("title").textContent = `Loss by step; dashed: the run before. ${sentence}`;
    charts.mir.querySelector("title").textContent = `MIR by step; dashed: the run before. ${sentence}`;
    return sentence;
  }

  async function start() {
    busy = true;
    button.textContent = "Stop";
    root.setAttribute("aria-busy", "true");
    if (run?.losses.length) before = run;
    run = { rate: model.get("learning_rate"), warmup: model.get("warmup_steps"), losses: [], probes: [], stopped: false };
    const mine = run;
    show();
    try {
      await engine.load(saying(status));
      if (!mine.stopped) {
        status.textContent = "It learns, in this page and on your machine.";
        const pictures = await Promise.all(model.get("pictures").map(pixelsOf));
        const given = { pictures, texts: model.get("texts"), world: model.get("world"), rate: mine.rate, warmup: mine.warmup };
        const began = performance.now();
        await engine.ask("train", { ...given, steps, batch: model.get("batch"), every: model.get("every"), queue }, (part) => {
          if (part.loss === undefined) mine.probes.push(part);
          else mine.losses.push([part.step, part.loss]);
          bar.value = mine.losses.length;
          const left = ((performance.now() - began) / 1000 / Math.max(1, mine.losses.length)) * (steps - mine.losses.length);
          clock.textContent = `Step ${mine.losses.length} of ${steps}${mine.losses.length > 1 ? `, about ${Math.ceil(left)} s to go` : ""}.`;
          const sentence = show();
          if (part.loss === undefined) spoken.say(sentence);
        });
      }
      status.textContent = mine.losses.length < steps ? "Stopped." : "Done. Change a setting and train again: this run stays, in grey.";
    } catch (error) {
      status.textContent = `The model does not learn: ${error.message}.`;
    }
    clock.textContent = "";
    busy = false;
    button.textContent = "Train";
    root.setAttribute("aria-busy", "false");
    spoken.say(show());
  }

  function stop() {
    run.stopped = true;
    engine.ask("stop", { queue });
  }

  const controls = element("div", {}, rate, warmup, element("div", { class: "mirlib-buttons" }, button), status, bar, clock);
  const held = element("table", {}, element("caption", {}, "What it says of a picture that it never learned from"), element("tbody", {}, ...words));
  const sample = element("div", { class: "mirlib-wide mirlib-described" }, picture, held);
  const figures = element("div", { class: "mirlib-wide mirlib-charts" }, charts.loss, charts.mir);
  const frame = element("div", { class: "mirlib-frame" }, controls, table, figures, sample, spoken.node);
  const root = element("div", { class: "mirlib-widget mirlib-train", role: "group", "aria-label": "Train in the page" }, frame);
  el.append(root);
  show();
  return () => engine.ask("stop", { queue });
}

export default { render };
