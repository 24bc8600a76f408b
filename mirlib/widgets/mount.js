// Mounts a widget in a page without a kernel: a plain object stands in for Jupyter's model.
class Model {
  constructor(state) {
    this.state = { ...state };
    this.listeners = new Map();
  }
  get(name) {
    return this.state[name];
  }
  set(name, value) {
    if (Object.is(this.state[name], value)) return;
    this.state[name] = value;
    for (const event of [`change:${name}`, "change"]) {
      for (const listener of [...(this.listeners.get(event) ?? [])]) listener();
    }
  }
  on(event, listener) {
    if (!this.listeners.has(event)) this.listeners.set(event, new Set());
    this.listeners.get(event).add(listener);
  }
  off(event, listener) {
    if (event === undefined || event === null) this.listeners.clear();
    else if (listener) this.listeners.get(event)?.delete(listener);
    else this.listeners.delete(event);
  }
  save_changes() {} // nobody to tell
}

async function mount(name, source, css, state) {
  // Scripts of a page run in order, so the first place that is still free belongs to this one.
  const place = document.querySelector(`[data-mirlib-widget="${name}"]:not([data-mounted])`);
  place.dataset.mounted = "";
  const styleId = `mirlib-style-${name}`;
  if (!document.getElementById(styleId)) {
    const style = document.createElement("style");
    style.id = styleId;
    style.textContent = css;
    document.head.append(style);
  }
  // A page that was opened from disk may not import a file, but it may import what it holds itself.
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  try {
    const module = await import(url);
    place.replaceChildren();
    await module.default.render({ model: new Model(state), el: place });
  } finally {
    URL.revokeObjectURL(url);
  }
}
