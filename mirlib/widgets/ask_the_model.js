// Draw a scene, and see what models that run in the page make of it: their answer to a question, what each patch costs to
// move onto words, and the words nearest to it.
const FILLS = ["solid", "hatched", "dotted"];
const NUMBERS = ["zero", "one", "two", "three", "four"];
const percent = (share) => (share >= 0.005 || share === 0 ? `${Math.round(100 * share)} %` : "< 1 %");

// A share as a bar, and in words.
function shareBar(share, fill) {
  const bar = element("div", { class: `mirlib-bar ${fill}` });
  bar.style.width = `${100 * share}%`;
  return [element("div", { class: "mirlib-share" }, bar), element("span", { class: "mirlib-value" }, percent(share))];
}

// --- Questions about a scene ------------------------------------------------------------------------------------------

const plural = (form) => (/^\d$/.test(form) ? form : form === "cross" ? "crosses" : `${form}s`);

// Questions that a scene allows, with their answers and the words that could be answers. "The circle" is asked about
// only where there is exactly one.
export function questionsOf(things, world) {
  const colours = Object.keys(world.colours);
  const family = (form) => (/^\d$/.test(form) ? Object.keys(world.digits) : world.shapes);
  const once = things.filter((thing) => things.filter((other) => other.shape === thing.shape).length === 1);
  const found = [["how many objects ?", NUMBERS[things.length], NUMBERS]];
  for (const thing of things) {
    found.push([`what colour is ${thing.cell} ?`, thing.colour, colours]);
    found.push([`what shape is ${thing.cell} ?`, thing.shape, family(thing.shape)]);
  }
  for (const thing of once) {
    found.push([`what colour is the ${thing.shape} ?`, thing.colour, colours]);
    found.push([`what size is the ${thing.shape} ?`, thing.size, Object.keys(world.sizes)]);
    found.push([`where is the ${thing.shape} ?`, thing.cell, CELLS]);
  }
  for (const { shape: form } of once) {
    const held = things.filter((thing) => thing.shape === form).length;
    found.push([`how many ${plural(form)} ?`, NUMBERS[held], NUMBERS]);
  }
  const is = (colour, form) => things.some((thing) => thing.colour === colour && thing.shape === form);
  const { colour, shape: form } = things[0];
  for (const asked of [colour, colours.find((other) => !is(other, form))]) {
    found.push([`is there a ${asked} ${form} ?`, is(asked, form) ? "yes" : "no", ["yes", "no"]]);
  }
  for (const first of once) {
    for (const second of once) {
      const [a, b] = [CELLS.indexOf(first.cell), CELLS.indexOf(second.cell)];
      if (a % 2 < b % 2) found.push([`is the ${first.shape} left of the ${second.shape} ?`, "yes", ["yes", "no"]]);
      if (a % 2 > b % 2) found.push([`is the ${first.shape} left of the ${second.shape} ?`, "no", ["yes", "no"]]);
    }
  }
  return found.map(([text, answer, words]) => ({ text, answer, words }));
}

// --- The widget ----------------------------------------------------------------------------------------------------------

const [SUM, ENTERING] = ["Layer (all: their sum)", "Layer (0: what enters the first)"];
const NAMES_OF_ZERO = { [SUM]: "all", [ENTERING]: "0" };
const END = "(the end)"; // of the answer: a word without letters
const VIEWS = { answer: "The answer", costs: "Cost of the patches", words: "Nearest words" };

function render({ model, el }) {
  const queue = `ask ${serial()}`; // so that no widget drops what another one waits for
  const world = model.get("world");
  const noise = new Float32Array(bytesOf(world.noise).buffer); // comes with the page, so that it is Python's
  const names = model.get("names");
  const engine = startEngine(model);
  const shown = () =>
    model
      .get("things")
      .slice(0, model.get("count"))
      .sort((a, b) => CELLS.indexOf(a.cell) - CELLS.indexOf(b.cell));
  let chosen = 0;

  const canvas = element("canvas", { class: "mirlib-picture", width: PICTURE, height: PICTURE, role: "img" });
  const head = element("tr", {}, element("th", { scope: "col" }, "possible answer"), ...names.map((name) => element("th", { scope: "col" }, name)));
  const body = element("tbody");
  const captions = element("tbody");
  const spoken = announcer();
  const status = element("p", { class: "mirlib-note", role: "status" });
  const bar = element("progress", { max: 1, value: 0, "aria-label": "Progress", hidden: "" });

  // The editor: one thing at a time, chosen by its button.
  const slack = ({ size }) => CELL / 2 - world.sizes[size] - 1;
  const edit = (name, value) => change({ [name]: value });
  function change(values) {
    const things = model.get("things").map((thing) => ({ ...thing }));
    const thing = things[chosen];
    if (values.cell) things.find((other) => other.cell === values.cell).cell = thing.cell; // they change places
    Object.assign(thing, values);
    for (const way of ["right", "down"]) thing[way] = Math.max(-slack(thing), Math.min(slack(thing), thing[way]));
    assign(model, { things });
  }
  const now = (name) => model.get("things")[chosen][name];
  const options = (words) => words.map((word) => [word, word]);
  const lists = {
    shape: [["shapes", options(world.shapes)], ["digits", options(Object.keys(world.digits))]],
    colour: [["", options(Object.keys(world.colours))]],
    size: [["", options(Object.keys(world.sizes))]],
    cell: [["", options(CELLS)]],
  };
  const fields = Object.entries(lists).map(([name, groups]) => {
    const made = choice(name, groups, () => now(name), (value) => edit(name, value));
    made.input.name = name;
    return made;
  });
  const proxy = { get: now, set: edit, save_changes() {}, on: (event, listener) => model.on("change:things", listener) };
  const pixels = (value) => `${number(value)} px`;
  const moves = [
    slider(proxy, "right", { label: "To the right", min: -5, max: 5, step: 1, show: pixels }),
    slider(proxy, "down", { label: "Down", min: -5, max: 5, step: 1, show: pixels }),
  ];
  const edited = (i) => {
    chosen = i;
    refreshEditor();
  };
  const tabs = [0, 1, 2, 3].map((i) => pushButton(`Thing ${i + 1}`, () => edited(i), { "data-thing": i }));
  function refreshEditor() {
    chosen = Math.min(chosen, model.get("count") - 1);
    tabs.forEach((button, i) => {
      button.hidden = i >= model.get("count");
      button.setAttribute("aria-pressed", String(i === chosen));
    });
    fields.forEach((field) => field.refresh());
    for (const move of moves) {
      const most = slack(model.get("things")[chosen]);
      Object.assign(move.querySelector("input"), { min: -most, max: most });
      move.refresh();
    }
  }

  // A mouse takes a thing along; a finger, which may want to scroll, puts it down. A free place gets the chosen thing.
  function take(event) {
    const taken = model.get("things").findIndex((thing, i) => i < model.get("count") && thing.cell === placeAt(event).cell);
    if (taken >= 0) edited(taken);
    change(placeAt(event));
  }
  const isTouch = ({ pointerType }) => pointerType === "touch";
  canvas.addEventListener("click", (event) => isTouch(event) && take(event));
  canvas.addEventListener("pointerdown", (event) => {
    if (isTouch(event)) return;
    canvas.setPointerCapture(event.pointerId);
    take(event);
  });
  canvas.addEventListener("pointermove", (event) => canvas.hasPointerCapture(event.pointerId) && !isTouch(event) && change(placeAt(event)));
  function placeAt({ clientX, clientY }) {
    const { left, top, width } = canvas.getBoundingClientRect();
    const [x, y] = [clientX - left, clientY - top].map((at) => Math.max(0, Math.min(PICTURE - 1, Math.floor((at / width) * PICTURE))));
    const [column, row] = [x, y].map((at) => Math.floor(at / CELL));
    return { cell: CELLS[2 * row + column], right: x - column * CELL - CELL / 2, down: y - row * CELL - CELL / 2 };
  }

  // The question: one of those that the scene allows, or the reader's own.
  const list = element("select", { id: `mirlib-question-${serial()}`, name: "question" });
  list.addEventListener("change", () => assign(model, { question: list.value }));
  const typed = element("input", { type: "text", name: "typed", maxlength: 120, id: `mirlib-typed-${serial()}` });
  const form = element("form", { class: "mirlib-chooser" }, element("label", { for: typed.id }, "Or ask in your own words"), typed, element("button", { type: "submit" }, "Ask"));
  const askTyped = (event) => {
    event.preventDefault();
    const question = typed.value.trim().split(/\s+/).join(" ");
    if (question) assign(model, { question });
  };
  form.addEventListener("submit", askTyped);
  typed.addEventListener("keydown", (event) => event.key === "Enter" && askTyped(event)); // a notebook keeps it from the form

  // What is looked at: one thing at a time.
  const choices = Object.entries(VIEWS).map(([view, label]) =>
    pushButton(label, () => assign(model, { view }), { "data-view": view }),
  );
  const inside = traitChoice(model, "inside", "Which model", [["", options(names)]]);
  inside.hidden = names.length < 2;

  // The picture under its patches, for the costs and for the words.
  const grid = { name: "Your picture", rows: 6, columns: 6, cells: [...Array(36).keys()], width: PICTURE, height: PICTURE };
  const stage = patchStage((patch) => assign(model, { patch }));
  const costs = costPanel();
  const nearest = element("tbody");
  const vector = element("p", { class: "mirlib-note" });
  const where = element("th", { scope: "col", colspan: 2 });
  let found = null; // what the engine has said of the picture in the present view

  function showPatches() {
    const [view, layer, patch] = ["view", "layer", "patch"].map((name) => model.get(name));
    if (!found || found.view !== view) return;
    const place = placeOf(grid, patch);
    let sentence;
    if (view === "costs") {
      const picture = { ...grid, address: found.address, costs: found.costs };
      const fills = costColours(picture, found.layers, layer);
      stage.draw(picture, { name: "Cost of each patch of your picture", fills, strength: 0.72, grey: true });
      const said = costs.show(picture, found.layers, layer, patch, true);
      sentence = said.sentence;
      root.dataset.numbers = JSON.stringify({ ...said.numbers, ...found.layers[layer] });
    } else {
      const words = found.words[layer];
      const fills = words.map(() => "var(--mirlib-paper)");
      const texts = words.map(({ output }) => output[0][0].trim());
      const name = "The word nearest to each patch of your picture";
      stage.draw({ ...grid, address: found.address }, { name, fills, strength: 0.5, texts });
      const at = layer === 0 ? "before layer 1" : `layer ${layer}`;
      where.textContent = `${capital(place)}, ${at}`;
      nearest.replaceChildren(...words[patch].output.map(([word, share]) => wordRow(word, share)));
      const [[word, cosine]] = words[patch].input;
      vector.textContent = `Of the vectors that words have where they enter, that of “${word.trim()}” is nearest: cosine ${number(cosine)}.`;
      sentence = `${place}, ${at}: ${words[patch].output.slice(0, 3).map(([one, share]) => `${one.trim()}, ${percent(share)}`).join("; ")}.`;
      root.dataset.numbers = JSON.stringify(words[patch]);
    }
    stage.point(patch, `Patches of your picture. Arrow keys move. ${sentence}`);
    spoken.say(sentence);
  }

  const wordRow = (word, share) => {
    const cell = element("td", { "data-value": share }, ...shareBar(share, "solid"));
    return element("tr", {}, element("th", { scope: "row" }, word.trim()), cell);
  };

  const settingsOf = (name) => ({ input: "", gain: 1, projector: model.get("projectors")[name] ? `${queue} ${name}` : "trained" });
  const working = (part) => {
    bar.hidden = false;
    bar.value = part;
  };

  async function lookInside(drawn, view) {
    const given = { pixels: drawn, settings: settingsOf(model.get("inside")), queue };
    if (view === "words") return { words: await engine.ask("lens", { ...given, most: 5 }, working) };
    beside ??= await Promise.all(model.get("companions").map(pixelsOf));
    const [text, ...texts] = model.get("texts");
    return engine.ask("map", { ...given, text, beside: { pictures: beside, texts } }, working);
  }
  let beside = null; // pixels of the companions

  async function refresh() {
    const view = model.get("view");
    choices.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.view === view)));
    for (const [parts, views] of shownIn) for (const part of parts) part.toggleAttribute("hidden", !views.includes(view));
    const things = shown();
    const drawn = paint(things, model.get("background"), noise, world);
    putPixels(canvas, drawn);
    canvas.setAttribute("aria-label", `Picture: ${captionOf(things)}`);
    if (view !== found?.view) {
      found = null;
      stage.draw({ ...grid, address: canvas.toDataURL() }, { name: "Your picture", fills: grid.cells.map(() => "none"), strength: 0 });
    }
    const known = questionsOf(things, world);
    const wanted = model.get("question");
    const question = known.find((one) => one.text === wanted) ?? { text: wanted, answer: "", words: [] };
    const all = question.answer ? known : [question, ...known];
    list.replaceChildren(...all.map(({ text }) => element("option", { value: text }, text)));
    list.value = question.text;
    root.setAttribute("aria-busy", "true");
    const mine = (turn += 1);
    try {
      await ready;
      if (view === "answer") {
        const replies = [];
        for (const name of names) {
          const given = { pixels: drawn, question: question.text, words: question.words, settings: settingsOf(name), queue };
          replies.push(await engine.ask("answer", given));
          if (mine !== turn) return;
        }
        show(question, replies);
        if (!(await describe(things, drawn, () => mine === turn))) return;
      } else {
        const said = await lookInside(drawn, view);
        if (mine !== turn || !said) return;
        found = { ...said, view, address: canvas.toDataURL() };
        showPatches();
      }
      status.textContent = "";
    } catch (error) {
      status.textContent = `The model does not answer: ${error.message}.`;
    }
    bar.hidden = true;
    root.removeAttribute("aria-busy");
  }
  let turn = 0;

  // The captions, below the answers and after them; another question about the same picture needs no new ones.
  async function describe(things, drawn, current) {
    const picture = drawn.join();
    if (picture === pictured) return true;
    pictured = "";
    const told = [["the truth", captionOf(things)], ...names.map((name) => [name, "…"])];
    const tell = () =>
      captions.replaceChildren(
        ...told.map(([who, words]) =>
          element("tr", {}, element("th", { scope: "row" }, who), element("td", { "data-caption": who }, words || "(nothing)")),
        ),
      );
    tell();
    for (let m = 0; m < names.length; m += 1) {
      told[m + 1][1] = await engine.ask("caption", { pixels: drawn, settings: settingsOf(names[m]), queue });
      if (!current()) return false;
      tell();
    }
    pictured = picture;
    return true;
  }
  let pictured = "";

  function show({ text, answer, words }, replies) {
    const listed = words.length ? words : [...new Set(replies.flatMap(({ likeliest }) => likeliest.map(([word]) => word)))];
    const share = (reply, word) => {
      if (words.length) return reply.probabilities[words.indexOf(word)];
      return reply.likeliest.find(([other]) => other === word)?.[1] ?? null; // it is told of the five likeliest alone
    };
    const right = (word) => answer !== "" && word === answer;
    const rows = listed.map((word) =>
      element(
        "tr",
        { class: right(word) ? "mirlib-true" : "" },
        element("th", { scope: "row" }, right(word) ? `${word} ✓` : word || END),
        ...replies.map((reply, m) => {
          const value = share(reply, word);
          const data = { "data-word": word, "data-model": names[m], "data-value": value ?? "" };
          return element("td", data, ...(value === null ? ["–"] : shareBar(value, FILLS[m % FILLS.length])));
        }),
      ),
    );
    const said = replies.map(({ likeliest }) => likeliest[0][0] || END);
    const verdict = (word) => (answer ? `${word} (${word === answer ? "right" : "wrong"})` : word);
    const line = said.map((word, m) => element("td", { "data-said": names[m] }, verdict(word)));
    body.replaceChildren(...rows, element("tr", { class: "mirlib-said" }, element("th", { scope: "row" }, "it says"), ...line));
    const truth = answer ? ` The truth: ${answer}.` : "";
    spoken.say(`${text} ${names.map((name, m) => `${name} says ${said[m]}.`).join(" ")}${truth}`);
  }

  const ready = (async () => {
    await engine.load(saying(status));
    for (const [name, text] of Object.entries(model.get("projectors"))) {
      if (text) await engine.ask("projector", { name: `${queue} ${name}`, values: new Float32Array(bytesOf(text).buffer) });
    }
  })();

  const editor = element(
    "fieldset",
    { class: "mirlib-wide mirlib-editor" },
    element("legend", {}, "Draw a scene"),
    element(
      "div",
      {},
      slider(model, "count", { label: "Number of things", min: 1, max: 4, step: 1 }),
      slider(model, "background", { label: "Grey of the background", min: 70, max: 149, step: 1 }),
    ),
    element(
      "div",
      {},
      element("div", { class: "mirlib-buttons" }, ...tabs),
      element("div", { class: "mirlib-fields" }, ...fields.map((field) => field.node)),
      ...moves,
    ),
  );
  const chooser = element("div", { class: "mirlib-chooser" }, element("label", { for: list.id }, "Question"), list);
  const table = element("table", { class: "mirlib-answers" }, element("thead", {}, head), body);
  const described = element("table", {}, element("caption", {}, "The picture described"), captions);
  const layers = (label) => slider(model, "layer", { label, min: 0, max: 8, step: 1, show: (k) => (k === 0 ? NAMES_OF_ZERO[label] : String(k)) });
  const costNote =
    "Your picture among six others, moved onto the words of seven texts at the least cost: the mean over all patches is the " +
    "distance of which MIR is made. A word is moved onto other words.";
  const costView = element("div", { class: "mirlib-costs" }, layers(SUM), costs.table, costs.legend, costs.chart, element("p", { class: "mirlib-note" }, costNote));
  const wordTable = element("table", { class: "mirlib-answers" }, element("thead", {}, element("tr", {}, where)), nearest);
  const wordNote = "Each patch is read as if this layer were the last: which word would come next? A � is a part of a letter.";
  const wordView = element("div", {}, layers(ENTERING), wordTable, vector, element("p", { class: "mirlib-note" }, wordNote));
  const shownIn = [
    [[canvas, chooser, form, table, described], ["answer"]],
    [[costView], ["costs"]],
    [[wordView], ["words"]],
    [[stage.node, ...(names.length < 2 ? [] : [inside])], ["costs", "words"]],
  ];
  const views = element("div", { class: "mirlib-wide mirlib-buttons", role: "group", "aria-label": "What you see" }, ...choices);
  const frame = element(
    "div",
    { class: "mirlib-frame" },
    editor,
    views,
    element("div", {}, canvas, stage.node),
    element("div", {}, inside, chooser, form, table, costView, wordView, status, bar),
    element("div", { class: "mirlib-wide" }, described, spoken.node),
  );
  const root = element("div", { class: "mirlib-widget mirlib-ask", role: "group", "aria-label": "Ask the model" }, frame);
  el.append(root);
  watch(model, ["things", "count"], refreshEditor);
  watch(model, ["things", "count", "background", "question", "view", "inside"], refresh);
  watch(model, ["layer", "patch"], showPatches);
  refreshEditor();
  refresh();
}

export default { render };
