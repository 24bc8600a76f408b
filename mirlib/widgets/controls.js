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

let controlCount = 0;

// A labelled slider for one numeric trait; the label, the value and the slider are tied together.
function slider(model, name, { label, min, max, step, show = number }) {
  const id = `mirlib-control-${name}-${(controlCount += 1)}`;
  const input = element("input", { type: "range", id, min, max, step, name });
  const output = element("output", { for: id, class: "mirlib-value" });
  const refresh = () => {
    input.value = model.get(name);
    output.textContent = show(model.get(name));
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => {
    model.set(name, Number(input.value));
    model.save_changes();
  });
  model.on(`change:${name}`, refresh);
  refresh();
  return element("div", { class: "mirlib-control" }, element("label", { for: id }, label), output, input);
}

// A labelled switch for one boolean trait.
function toggle(model, name, { label }) {
  const input = element("input", { type: "checkbox", name });
  const refresh = () => {
    input.checked = model.get(name);
  };
  input.addEventListener("change", () => {
    model.set(name, input.checked);
    model.save_changes();
  });
  model.on(`change:${name}`, refresh);
  refresh();
  return element("label", { class: "mirlib-toggle" }, input, element("span", {}, label));
}

// A labelled list to choose one value of a trait from. Groups: [[heading or "", [[value, text], …]], …].
function choice(label, groups, get, set) {
  const id = `mirlib-control-choice-${(controlCount += 1)}`;
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
  const made = choice(label, groups, () => model.get(name), (value) => {
    model.set(name, value);
    model.save_changes();
  });
  made.input.name = name;
  model.on(`change:${name}`, made.refresh);
  return made.node;
}

// Round numbers for the ticks of an axis from low to high: powers of ten, with 2 and 5 between them where they are few.
function ticks(low, high, logarithmic, most = 6) {
  if (logarithmic) {
    const from = Math.floor(Math.log10(low));
    const to = Math.ceil(Math.log10(high));
    for (const steps of [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1, 3], [1]]) {
      const found = [];
      for (let power = from; power <= to; power += 1) {
        for (const step of steps) found.push(Number(`${step}e${power}`));
      }
      const inside = found.filter((value) => value >= low && value <= high);
      if (inside.length <= most && (inside.length >= 2 || steps.length === 1)) return inside;
    }
    const every = Math.ceil((to - from) / most);
    const found = [];
    for (let power = from; power <= to; power += every) found.push(Number(`1e${power}`));
    return found.filter((value) => value >= low && value <= high);
  }
  const rough = (high - low) / most;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * size).find((candidate) => candidate >= rough);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + 1e-9 * step; k += 1) found.push(Number((k * step).toPrecision(12)));
  return found;
}

// Mean, lowest and highest, summed in order as in Python.
function meanAndRange(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return { mean, low: Math.min(...values), high: Math.max(...values) };
}

// A button that sets several traits at once.
function setter(model, label, values) {
  const button = element("button", { type: "button" }, label);
  button.addEventListener("click", () => {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
  });
  return button;
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

