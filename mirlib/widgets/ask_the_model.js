// Pictures, questions and answers. The cards come from Python: the gallery with the page, others from a kernel on request.
const FILLS = ["solid", "hatched"];

// What the editor's controls change: like Jupyter's model, but it stays in the page until `save_changes` is told.
class Draft {
  constructor(state, changed) {
    Object.assign(this, { state, changed, listeners: {} });
  }
  get(name) {
    return this.state[name];
  }
  set(name, value) {
    this.state[name] = value;
    for (const listener of this.listeners[`change:${name}`] ?? []) listener();
  }
  on(event, listener) {
    (this.listeners[event] ??= []).push(listener);
  }
  save_changes() {
    this.changed();
  }
}

let chooserCount = 0;

// A labelled drop-down list. `fill` sets its options: [[label of group or "", [[value, text], …]], …].
function chooser(label, name, onChange) {
  const id = `mirlib-chooser-${(chooserCount += 1)}`;
  const select = element("select", { id, name });
  select.addEventListener("change", () => onChange(select.value));
  const node = element("div", { class: "mirlib-chooser" }, element("label", { for: id }, label), select);
  const fill = (groups, value) => {
    const option = ([of, text]) => element("option", { value: of }, text);
    select.replaceChildren(
      ...groups.flatMap(([group, options]) =>
        group ? [element("optgroup", { label: group }, ...options.map(option))] : options.map(option),
      ),
    );
    select.value = value;
  };
  return { node, select, fill };
}

const same = (words) => [["", words.map((word) => [word, word])]];
const percent = (share) => (share >= 0.005 || share === 0 ? `${Math.round(100 * share)} %` : "< 1 %");

function render({ model, el }) {
  const names = model.get("names");
  const gallery = model.get("gallery");
  const choices = model.get("choices");
  const live = model.get("live");
  let card = gallery[0];
  let asked = 0; // which question of the card
  let origin = 0; // which card of the gallery the picture comes from; null if the reader changed it

  // The picture, the gallery and the answers.
  const picture = element("img", { class: "mirlib-picture dark-light", width: 48, height: 48 });
  const thumbnails = gallery.map((one, i) => {
    const image = element("img", { class: "dark-light", src: one.picture, alt: one.caption, width: 48, height: 48 });
    const button = element("button", { type: "button", class: "mirlib-thumbnail", "data-card": i }, image);
    button.addEventListener("click", () => {
      origin = i;
      if (live) load(one);
      show(one);
    });
    return button;
  });
  const question = chooser("Question", "question", (value) => {
    asked = Number(value);
    typed.value = "";
    refresh();
  });
  const head = element("thead");
  const body = element("tbody");
  const captions = element("tbody");
  const spoken = announcer();
  const problem = element("p", { class: "mirlib-problem", role: "alert" });

  function show(next) {
    const before = card.questions[asked];
    card = next;
    const kept = card.questions.findIndex((q) => q.text === before.text);
    const alike = card.questions.findIndex((q) => q.kind === before.kind);
    asked = typed.value ? 0 : Math.max(kept >= 0 ? kept : alike, 0); // a typed question stands first
    question.fill([["", card.questions.map((q, i) => [String(i), q.text])]], String(asked));
    refresh();
  }

  function refresh() {
    const { kind, text, answer, words } = card.questions[asked];
    picture.src = card.picture;
    picture.alt = `Picture: ${card.caption}`;
    thumbnails.forEach((button, i) => button.setAttribute("aria-pressed", String(i === origin)));
    head.replaceChildren(
      element(
        "tr",
        {},
        element("th", { scope: "col" }, kind ? "possible answer" : "likeliest words"),
        ...names.map((name) => element("th", { scope: "col" }, name)),
      ),
    );
    const rows = words.map((word, w) =>
      element(
        "tr",
        { class: word === answer ? "mirlib-true" : "" },
        element("th", { scope: "row" }, word === answer ? `${word} ✓` : word),
        ...names.map((name, m) => {
          const share = card.models[name].probabilities[asked][w];
          const bar = element("div", { class: `mirlib-bar ${FILLS[m % FILLS.length]}` });
          bar.style.width = `${100 * share}%`;
          return element(
            "td",
            { "data-word": word, "data-model": name, "data-value": share },
            element("div", { class: "mirlib-share" }, bar),
            element("span", { class: "mirlib-value" }, percent(share)),
          );
        }),
      ),
    );
    const said = names.map((name) => card.models[name].said[asked]);
    const verdict = (word) => (kind ? (word === answer ? `${word} (right)` : `${word} (wrong)`) : word);
    rows.push(
      element(
        "tr",
        { class: "mirlib-said" },
        element("th", { scope: "row" }, "it says"),
        ...said.map((word, m) => element("td", { "data-said": names[m] }, verdict(word))),
      ),
    );
    body.replaceChildren(...rows);
    captions.replaceChildren(
      ...[["the truth", card.caption], ...names.map((name) => [name, card.models[name].caption])].map(([who, line]) =>
        element(
          "tr",
          {},
          element("th", { scope: "row" }, who),
          element("td", { "data-caption": who }, line || "(nothing)"),
        ),
      ),
    );
    const truth = kind ? ` The truth: ${answer}.` : "";
    spoken.say(`${text} ${names.map((name, m) => `${name} says ${said[m]}.`).join(" ")}${truth}`);
  }

  // The editor. One question to the kernel is under way at a time; what changes meanwhile is asked next.
  const things = [];
  let waiting = false;
  let stale = false;
  let patience;
  const draft = new Draft({ count: 1, right: 0, down: 0, background: 110 }, () => {
    const thing = things[chosen];
    if (thing) Object.assign(thing, { right: draft.get("right"), down: draft.get("down") });
    origin = null;
    chosen = Math.min(chosen, draft.get("count") - 1);
    refreshEditor();
    request();
  });
  let chosen = 0;

  function request() {
    if (waiting) {
      stale = true;
      return;
    }
    waiting = true;
    model.set("things", things.slice(0, draft.get("count")).map((thing) => ({ ...thing })));
    model.set("background", draft.get("background"));
    model.set("typed", typed.value);
    model.set("request", model.get("request") + 1);
    model.save_changes();
    root.setAttribute("aria-busy", "true");
    clearTimeout(patience);
    patience = setTimeout(() => {
      problem.textContent = "The kernel is busy with another cell; the answer follows.";
    }, 1500);
  }

  function answered() {
    const reply = model.get("reply");
    if (!waiting || reply.number !== model.get("request")) return;
    waiting = false;
    clearTimeout(patience);
    root.removeAttribute("aria-busy");
    problem.textContent = reply.error ?? "";
    if (!reply.error) show(reply);
    if (stale) {
      stale = false;
      request();
    }
  }

  // Put a card's scene into the editor. Things that are not shown wait in the free cells.
  function load(one) {
    const free = choices.cell.filter((cell) => one.things.every((thing) => thing.cell !== cell));
    const spare = free.map((cell, i) => ({ ...one.things[i % one.things.length], cell, right: 0, down: 0 }));
    things.splice(0, things.length, ...one.things.map((thing) => ({ ...thing })), ...spare);
    draft.set("count", one.things.length);
    draft.set("background", one.background);
    typed.value = "";
    chosen = 0;
    refreshEditor();
  }

  function change(name, value) {
    const thing = things[chosen];
    if (name === "cell") things.find((other) => other.cell === value).cell = thing.cell; // they change places
    thing[name] = value;
    const slack = choices.slack[thing.size];
    for (const way of ["right", "down"]) thing[way] = Math.max(-slack, Math.min(slack, thing[way]));
    origin = null;
    refreshEditor();
    request();
  }

  const tabs = choices.cell?.map((_, i) => {
    const button = element("button", { type: "button", "data-thing": i }, `Thing ${i + 1}`);
    button.addEventListener("click", () => {
      chosen = i;
      refreshEditor();
    });
    return button;
  });
  const fields = Object.fromEntries(
    ["shape", "colour", "size", "cell"].map((name) => [name, chooser(name, name, (value) => change(name, value))]),
  );
  const typed = element("input", { type: "text", name: "typed", id: `mirlib-typed-${(chooserCount += 1)}` });
  const form = element(
    "form",
    { class: "mirlib-chooser" },
    element("label", { for: typed.id }, "Or ask in your own words"),
    typed,
    element("button", { type: "submit" }, "Ask"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    request();
  });
  // A notebook keeps Enter from submitting a form, so the field listens itself.
  typed.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    request();
  });
  const moves = element("div");

  function refreshEditor() {
    const thing = things[chosen];
    tabs.forEach((button, i) => {
      button.hidden = i >= draft.get("count");
      button.setAttribute("aria-pressed", String(i === chosen));
    });
    fields.shape.fill([["shapes", same(choices.shape)[0][1]], ["digits", same(choices.digit)[0][1]]], thing.shape);
    for (const name of ["colour", "size", "cell"]) fields[name].fill(same(choices[name]), thing[name]);
    const slack = choices.slack[thing.size];
    for (const input of moves.querySelectorAll("input")) Object.assign(input, { min: -slack, max: slack });
    draft.set("right", thing.right);
    draft.set("down", thing.down);
  }

  const pixels = (value) => `${number(value)} px`;
  const parts = [
    element("div", {}, picture, element("div", { class: "mirlib-gallery", role: "group", "aria-label": "Scenes" }, ...thumbnails)),
    element(
      "div",
      {},
      question.node,
      live ? form : "",
      element("table", { class: "mirlib-answers" }, head, body),
      problem,
    ),
  ];
  if (live) {
    moves.append(
      slider(draft, "right", { label: "To the right", min: -5, max: 5, step: 1, show: pixels }),
      slider(draft, "down", { label: "Down", min: -5, max: 5, step: 1, show: pixels }),
    );
    const whole = element(
      "div",
      {},
      slider(draft, "count", { label: "Number of things", min: 1, max: choices.cell.length, step: 1 }),
      slider(draft, "background", { label: "Grey of the background", min: 70, max: 149, step: 1 }),
    );
    const words = element("div", { class: "mirlib-fields" }, ...Object.values(fields).map((field) => field.node));
    const editor = element(
      "fieldset",
      { class: "mirlib-wide mirlib-editor" },
      element("legend", {}, "Draw a scene"),
      whole,
      element("div", {}, element("div", { class: "mirlib-buttons" }, ...tabs), words, moves),
    );
    parts.unshift(editor);
    load(card);
    model.on("change:reply", answered);
  }
  const table = element("table", {}, element("caption", {}, "The picture described"), captions);
  parts.push(element("div", { class: "mirlib-wide" }, table, spoken.node));
  const frame = element("div", { class: "mirlib-frame" }, ...parts);
  const root = element("div", { class: "mirlib-widget mirlib-ask", role: "group", "aria-label": "Ask the model" }, frame);
  el.append(root);
  show(card);
  return () => model.off("change:reply", answered);
}

export default { render };
