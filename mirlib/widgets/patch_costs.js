// Pictures with their patches coloured by cost, layer by layer. patch_costs.py computes the same numbers in Python.
const TRAITS = ["picture", "layer", "patch", "coloured"];

function render({ model, el }) {
  const pictures = model.get("pictures");
  const layers = model.get("layers");
  const dearest = (picture, layer) => {
    const costs = picture.cells.map((cell, i) =>
      picture.rows > 0 && cell < 0 ? -1 : (reading(picture, layers, layer, i).cost ?? -1),
    );
    return costs.indexOf(Math.max(...costs));
  };

  const label = (picture, i) => {
    const place = i === 0 ? ", dearest" : i === pictures.length - 1 ? ", cheapest" : "";
    return `${picture.name} (${number(picture.mean)} a patch${place})`;
  };
  const chooser = choice(
    "Picture",
    [["", pictures.map((picture, i) => [String(i), label(picture, i)])]],
    () => String(model.get("picture")),
    (value) => assign(model, { picture: Number(value), patch: dearest(pictures[Number(value)], model.get("layer")) }),
  );
  chooser.input.name = "picture";

  const stage = patchStage((patch) => assign(model, { patch }));
  const panel = costPanel();
  const note = element("p", { class: "mirlib-note" });
  const spoken = announcer();
  const layerName = (layer) => (layer === 0 ? "all" : String(layer));

  let drawn = null; // which picture and layer the tiles show
  const refresh = () => {
    const state = Object.fromEntries(TRAITS.map((name) => [name, model.get(name)]));
    const picture = pictures[state.picture];
    const key = JSON.stringify([state.picture, state.layer, state.coloured]);
    if (key !== drawn) {
      drawn = key;
      stage.draw(picture, {
        name: `${picture.name}, ${picture.rows || 1} by ${picture.columns || picture.cells.length} patches`,
        fills: costColours(picture, layers, state.layer),
        strength: state.coloured ? 0.72 : 0,
        grey: state.coloured,
      });
    }
    const { numbers, sentence } = panel.show(picture, layers, state.layer, state.patch, state.coloured);
    stage.point(state.patch, `Patches of ${picture.name}. Arrow keys move. ${sentence}`);
    const unplaced = picture.rows === 0 ? 0 : picture.cells.filter((one) => one < 0).length;
    note.textContent =
      (picture.rows === 0 ? "Where the patches stand in the picture is not known: they are drawn in order below it. " : "") +
      (unplaced ? `${unplaced} more rows stand for no single place and are not drawn. ` : "") +
      (numbers.cost === null ? "The outlier rule drops this patch in this layer. " : "") +
      "A word is moved onto other words, a patch onto all words.";
    spoken.say(sentence);
    chooser.refresh();
    // All the numbers, unrounded, for whoever wants to check them.
    root.dataset.numbers = JSON.stringify(numbers);
  };

  const show = element("div", {}, chooser.node, stage.node);
  const controls = element(
    "div",
    {},
    panel.table,
    slider(model, "layer", { label: "Layer (all: their sum)", min: 0, max: layers.length - 1, step: 1, show: layerName }),
    panel.legend,
    panel.chart,
    toggle(model, "coloured", { label: "Colour the patches" }),
    note,
    spoken.node,
  );
  const frame = element("div", { class: "mirlib-frame" }, show, controls);
  const root = element(
    "div",
    { class: "mirlib-widget mirlib-costs", role: "group", "aria-label": "Costs of patches" },
    frame,
  );
  refresh();
  el.append(root);
  return watch(model, TRAITS, refresh);
}

export default { render };
