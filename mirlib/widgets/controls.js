// Shared by all widgets: elements, sliders, switches and numbers that a keyboard and a screen reader can use.
const SVG = "http://www.w3.org/2000/svg";

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function shape(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Four significant digits, with a real minus sign.
function number(value) {
  if (value === -Infinity) return "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e5 || size < 1e-4 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  return text.replace("-", "−");
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// Sets traits of a model, by name, and tells the kernel.
function assign(model, values) {
  for (const [name, value] of Object.entries(values)) model.set(name, value);
  model.save_changes();
}

// Calls a listener whenever one of some traits changes; what is returned ends that.
function watch(model, names, listener) {
  for (const name of names) model.on(`change:${name}`, listener);
  return () => names.forEach((name) => model.off(`change:${name}`, listener));
}

// A number that nothing else in the page has: every widget brings this file along, so they count in one place.
const serial = () => (self.mirlibCount = (self.mirlibCount ?? 0) + 1);

// A labelled slider for one numeric trait; the label, the value and the slider are tied together.
function slider(model, name, { label, min, max, step, show = number }) {
  const id = `mirlib-control-${serial()}`;
  const input = element("input", { type: "range", id, min, max, step, name });
  const output = element("output", { for: id, class: "mirlib-value" });
  const refresh = () => {
    input.value = model.get(name);
    output.textContent = show(model.get(name));
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => assign(model, { [name]: Number(input.value) }));
  model.on(`change:${name}`, refresh);
  refresh();
  const node = element("div", { class: "mirlib-control" }, element("label", { for: id }, label), output, input);
  return Object.assign(node, { refresh });
}

// A labelled switch for one boolean trait.
function toggle(model, name, { label }) {
  const input = element("input", { type: "checkbox", name });
  const refresh = () => {
    input.checked = model.get(name);
  };
  input.addEventListener("change", () => assign(model, { [name]: input.checked }));
  model.on(`change:${name}`, refresh);
  refresh();
  return element("label", { class: "mirlib-toggle" }, input, element("span", {}, label));
}

// A labelled list to choose one value of a trait from. Groups: [[heading or "", [[value, text], …]], …].
function choice(label, groups, get, set) {
  const id = `mirlib-control-${serial()}`;
  const input = element("select", { id });
  for (const [heading, options] of groups) {
    const nodes = options.map(([value, text]) => element("option", { value }, text));
    input.append(...(heading ? [element("optgroup", { label: heading }, ...nodes)] : nodes));
  }
  const refresh = () => {
    input.value = get();
  };
  input.addEventListener("change", () => set(input.value));
  refresh();
  return { node: element("div", { class: "mirlib-choice" }, element("label", { for: id }, label), input), refresh, input };
}

// The same for a trait that holds the value itself.
function traitChoice(model, name, label, groups) {
  const made = choice(label, groups, () => model.get(name), (value) => assign(model, { [name]: value }));
  made.input.name = name;
  model.on(`change:${name}`, made.refresh);
  return made.node;
}

// Round numbers for the ticks of an axis from low to high.
function ticks(low, high, most) {
  const rough = (high - low) / most;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * size).find((candidate) => candidate >= rough);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + 1e-9 * step; k += 1) found.push(Number((k * step).toPrecision(12)));
  return found;
}

// Lines across a plot at round numbers, each with its number on the left.
function rulings(low, high, most, toY, { left, right }) {
  return ticks(low, high, most).flatMap((tick) => [
    shape("line", { x1: left, x2: right, y1: toY(tick), y2: toY(tick), stroke: "var(--mirlib-line)" }),
    shape("text", { x: left - 6, y: toY(tick) + 4, "text-anchor": "end", class: "quiet" }, number(tick)),
  ]);
}

// A button, and what it does.
function pushButton(label, act, attributes = {}) {
  const button = element("button", { type: "button", ...attributes }, label);
  button.addEventListener("click", act);
  return button;
}

// A button that sets several traits at once.
const setter = (model, label, values) => pushButton(label, () => assign(model, values));

// A line of a table: what a number is, and the cell that it stands in, which is kept by its name.
function numberRow(cells, name, ...label) {
  cells[name] = element("td", { class: "mirlib-number", "data-name": name });
  return element("tr", {}, element("th", { scope: "row" }, ...label), cells[name]);
}

// A sentence for screen readers, spoken when the reader has stopped moving the slider.
function announcer() {
  const node = element("p", { class: "mirlib-spoken", "aria-live": "polite" });
  let timer;
  const say = (text) => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      node.textContent = text;
    }, 400);
  };
  return { node, say };
}

