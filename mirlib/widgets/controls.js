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

