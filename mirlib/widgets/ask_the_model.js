// Draw a scene, ask about it, and read the answers of models that run in the page.
const FILLS = ["solid", "hatched", "dotted"];
const NUMBERS = ["zero", "one", "two", "three", "four"];
const percent = (share) => (share >= 0.005 || share === 0 ? `${Math.round(100 * share)} %` : "< 1 %");

// --- Questions about a scene ------------------------------------------------------------------------------------------

const plural = (form) => (/^\d$/.test(form) ? form : form === "cross" ? "crosses" : `${form}s`);

// Questions that a scene allows, with their answers and the words that could be answers. "The circle" is asked about
// only where there is exactly one.
export function questionsOf(things, world) {
  const colours = Object.keys(world.colours);
  const family = /^\d$/.test(things[0].shape) ? Object.keys(world.digits) : world.shapes;
  const once = things.filter((thing) => things.filter((other) => other.shape === thing.shape).length === 1);
  const found = [["how many objects ?", NUMBERS[things.length], NUMBERS]];
  for (const thing of things) {
    found.push([`what colour is ${thing.cell} ?`, thing.colour, colours]);
    found.push([`what shape is ${thing.cell} ?`, thing.shape, family]);
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

function render({ model, el }) {
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

  // The editor: one thing at a time, chosen by its button.
  const edit = (name, value) => {
    const things = model.get("things").map((thing) => ({ ...thing }));
    const thing = things[chosen];
    if (name === "cell") things.find((other) => other.cell === value).cell = thing.cell; // they change places
    thing[name] = value;
    const slack = CELL / 2 - world.sizes[thing.size] - 1;
    for (const way of ["right", "down"]) thing[way] = Math.max(-slack, Math.min(slack, thing[way]));
    model.set("things", things);
    model.save_changes();
  };
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
  const tabs = [0, 1, 2, 3].map((i) => {
    const button = element("button", { type: "button", "data-thing": i }, `Thing ${i + 1}`);
    button.addEventListener("click", () => {
      chosen = i;
      refreshEditor();
    });
    return button;
  });
  function refreshEditor() {
    chosen = Math.min(chosen, model.get("count") - 1);
    tabs.forEach((button, i) => {
      button.hidden = i >= model.get("count");
      button.setAttribute("aria-pressed", String(i === chosen));
    });
    fields.forEach((field) => field.refresh());
    moves.forEach((move) => {
      const input = move.querySelector("input");
      input.value = now(input.name);
      move.querySelector("output").textContent = pixels(now(input.name));
    });
  }

  // The question: one of those that the scene allows, or the reader's own.
  const list = element("select", { id: "mirlib-question", name: "question" });
  list.addEventListener("change", () => {
    model.set("question", list.value);
    model.save_changes();
  });
  const typed = element("input", { type: "text", name: "typed", id: "mirlib-typed" });
  const form = element("form", { class: "mirlib-chooser" }, element("label", { for: typed.id }, "Or ask in your own words"), typed, element("button", { type: "submit" }, "Ask"));
  const askTyped = (event) => {
    event.preventDefault();
    const words = typed.value.trim().split(/\s+/).join(" ");
    if (words) model.set("question", words);
    model.save_changes();
  };
  form.addEventListener("submit", askTyped);
  typed.addEventListener("keydown", (event) => event.key === "Enter" && askTyped(event)); // a notebook keeps it from the form

  async function refresh() {
    const things = shown();
    const drawn = paint(things, model.get("background"), noise, world);
    const image = new ImageData(PICTURE, PICTURE);
    for (let i = 0; i < PICTURE ** 2; i += 1) image.data.set([drawn[3 * i], drawn[3 * i + 1], drawn[3 * i + 2], 255], 4 * i);
    canvas.getContext("2d").putImageData(image, 0, 0);
    canvas.setAttribute("aria-label", `Picture: ${captionOf(things)}`);
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
      const replies = [];
      for (const name of names) {
        const settings = { input: "", gain: 1, projector: model.get("projectors")[name] ? name : "trained" };
        const given = { pixels: drawn, question: question.text, words: question.words, settings };
        replies.push(await engine.ask("answer", given));
        if (mine !== turn) return;
      }
      show(question, things, replies);
      status.textContent = "";
    } catch (error) {
      status.textContent = `The model does not answer: ${error.message}.`;
    }
    root.removeAttribute("aria-busy");
  }
  let turn = 0;

  function show({ text, answer, words }, things, replies) {
    const listed = words.length ? words : [...new Set(replies.flatMap(({ likeliest }) => likeliest.map(([word]) => word)))];
    const share = (reply, word) => {
      if (words.length) return reply.probabilities[words.indexOf(word)];
      return reply.likeliest.find(([other]) => other === word)?.[1] ?? 0;
    };
    const rows = listed.map((word) =>
      element(
        "tr",
        { class: word === answer ? "mirlib-true" : "" },
        element("th", { scope: "row" }, word === answer ? `${word} ✓` : word),
        ...replies.map((reply, m) => {
          const bar = element("div", { class: `mirlib-bar ${FILLS[m % FILLS.length]}` });
          bar.style.width = `${100 * share(reply, word)}%`;
          const value = element("span", { class: "mirlib-value" }, percent(share(reply, word)));
          const data = { "data-word": word, "data-model": names[m], "data-value": share(reply, word) };
          return element("td", data, element("div", { class: "mirlib-share" }, bar), value);
        }),
      ),
    );
    const said = replies.map(({ likeliest }) => likeliest[0][0]);
    const verdict = (word) => (answer ? `${word} (${word === answer ? "right" : "wrong"})` : word);
    const line = said.map((word, m) => element("td", { "data-said": names[m] }, verdict(word)));
    body.replaceChildren(...rows, element("tr", { class: "mirlib-said" }, element("th", { scope: "row" }, "it says"), ...line));
    const told = [["the truth", captionOf(things)], ...replies.map(({ caption }, m) => [names[m], caption])];
    captions.replaceChildren(
      ...told.map(([who, words_]) =>
        element("tr", {}, element("th", { scope: "row" }, who), element("td", { "data-caption": who }, words_ || "(nothing)")),
      ),
    );
    const truth = answer ? ` The truth: ${answer}.` : "";
    spoken.say(`${text} ${names.map((name, m) => `${name} says ${said[m]}.`).join(" ")}${truth}`);
  }

  const ready = (async () => {
    await engine.load((part) => {
      status.textContent = `The model comes with the page: ${Math.round(100 * part)} % of 5 MB.`;
    });
    for (const [name, text] of Object.entries(model.get("projectors"))) {
      if (text) await engine.ask("projector", { name, values: new Float32Array(bytesOf(text).buffer) });
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
  const asked = element("div", { class: "mirlib-chooser" }, element("label", { for: list.id }, "Question"), list);
  const table = element("table", { class: "mirlib-answers" }, element("thead", {}, head), body);
  const described = element("table", {}, element("caption", {}, "The picture described"), captions);
  const frame = element(
    "div",
    { class: "mirlib-frame" },
    editor,
    element("div", {}, canvas),
    element("div", {}, asked, form, table, status),
    element("div", { class: "mirlib-wide" }, described, spoken.node),
  );
  const root = element("div", { class: "mirlib-widget mirlib-ask", role: "group", "aria-label": "Ask the model" }, frame);
  el.append(root);
  for (const name of ["things", "count"]) model.on(`change:${name}`, refreshEditor);
  for (const name of ["things", "count", "background", "question"]) model.on(`change:${name}`, refresh);
  refreshEditor();
  refresh();
}

export default { render };
