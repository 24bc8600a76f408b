"""The per-layer explorer: what it makes of the ledger's rows, its numbers in Python, and the same in the page."""

import json
import math

import numpy as np
import pytest
from widget_pages import write_page

from mirlib.widgets import LayerExplorer
from mirlib.widgets.layers import QUANTITIES, layer_runs, layer_series, layer_values
from mirlib.widgets.ledger_rows import arm_names

LAYERS = 4


def metrics(rng, accuracy=True):
    mean_term, covariance_term = rng.uniform(0.1, 30, (2, LAYERS))
    fid = mean_term + covariance_term
    found = {
        "mir": {
            "value": math.log10(fid.sum()),
            "per_layer": fid.tolist(),
            "mean_term": mean_term.tolist(),
            "covariance_term": covariance_term.tolist(),
            "norm_ratio": rng.uniform(0.5, 9, LAYERS).tolist(),
            "norm_only": rng.uniform(0, 2),
            "null": rng.uniform(0.6, 0.7),
            "floor": -1.8,
        },
        "stage_one": {"curve": [[step, 1.0] for step in range(500)]},
    }
    return found | ({"accuracy": {"mean": rng.uniform(0.3, 0.9), "blind": 0.3}} if accuracy else {})


def rows():
    """Two experiments: one of two arms and three seeds (one run is missing), one that was measured on its way."""
    made = []
    for arm, pairs in (("few pairs", 512), ("many pairs", 8192)):
        for seed in (2, 0, 1):  # rows come in the order in which runs finished
            if (arm, seed) == ("many pairs", 1):
                continue
            configuration = {"seed": seed, "parts": seed, "stage_one": {"pairs": pairs}}
            own = metrics(np.random.default_rng([pairs, seed]))
            made.append({"experiment": "scale", "arm": arm, "configuration": configuration, "metrics": own})
    for seed in (0, 1):
        probes = [{"step": s, **metrics(np.random.default_rng([s, seed]), accuracy=False)} for s in (16, 64)]
        own = metrics(np.random.default_rng([9, seed])) | {"probes": probes}
        made.append({"experiment": "steps", "arm": "plain", "configuration": {"seed": seed}, "metrics": own})
    return made


ALL_ARMS = [
    "scale: few pairs",
    "scale: many pairs",
    "steps: plain, step 16",
    "steps: plain, step 64",
    "steps: plain, last step",
]


def test_arms_and_probes_become_series_with_their_seeds_in_order():
    arms = layer_runs(rows())
    assert [arm["name"] for arm in arms] == ALL_ARMS
    assert [[run["seed"] for run in arm["runs"]] for arm in arms] == [[0, 1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]


def test_the_payload_is_small_and_as_exact_as_five_digits():
    source = rows()
    arms = {arm["name"]: arm for arm in layer_runs(source)}
    run = arms["scale: few pairs"]["runs"][2]
    own = next(r for r in source if r["arm"] == "few pairs" and r["configuration"]["seed"] == 2)["metrics"]
    for name in ("per_layer", "mean_term", "covariance_term", "norm_ratio"):
        np.testing.assert_allclose(run[name], own["mir"][name], rtol=5e-5)
    assert run["accuracy"] == pytest.approx(own["accuracy"]["mean"], rel=5e-5)
    sizes = len(json.dumps(LayerExplorer(source).state())), len(json.dumps(source))
    assert sizes[0] < sizes[1] / 10, "the training curves do not belong in the page"


def test_numbers_are_means_and_ranges_over_the_seeds_that_there_are():
    arm = layer_runs(rows())[0]
    shares = np.array([run["per_layer"] / np.sum(run["per_layer"]) for run in arm["runs"]])
    got = layer_series(arm, "share")
    np.testing.assert_allclose([band.mean for band in got.curve], shares.mean(axis=0))
    np.testing.assert_allclose([band.low for band in got.curve], shares.min(axis=0))
    np.testing.assert_allclose([band.high for band in got.curve], shares.max(axis=0))
    assert sum(band.mean for band in got.curve) == pytest.approx(1)
    assert got.mir.mean == pytest.approx(np.mean([run["value"] for run in arm["runs"]]))
    assert got.seeds == (0, 1, 2)


def test_one_seed_is_one_run_and_a_missing_seed_is_none():
    few, many = layer_runs(rows())[:2]
    (run,) = [run for run in few["runs"] if run["seed"] == 1]
    got = layer_series(few, "norm_ratio", "1")
    assert [(band.low, band.mean, band.high) for band in got.curve] == [(v, v, v) for v in run["norm_ratio"]]
    assert layer_series(many, "norm_ratio", "1") is None


def test_the_level_is_the_zeroed_rows_baseline_a_layer():
    widget = LayerExplorer(rows(), chosen=ALL_ARMS[:2])
    levels = [series.zeroed_rows.mean for series in widget.numbers()]
    assert widget.level() == pytest.approx(10 ** np.mean(levels) / LAYERS)
    widget.quantity = "share"
    assert widget.level() == 1 / LAYERS


def test_arms_are_named_by_the_settings_that_tell_them_apart():
    base = {"seed": 0, "stage_one": {"pairs": 8, "rate": 0.1, "steps": 1}}
    other = {"seed": 1, "stage_one": {"pairs": 64, "rate": 0.1, "steps": 8}}  # steps follow from pairs
    faster = {"seed": 1, "stage_one": {"pairs": 64, "rate": 0.5, "steps": 8}}
    named = arm_names([{"configuration": c} for c in (base, other, faster)])
    assert named == ["pairs 8, rate 0.1", "pairs 64, rate 0.1", "pairs 64, rate 0.5"]
    assert arm_names([{"configuration": base}], lambda row: "mine") == ["mine"]


def test_rows_without_layers_are_refused_and_wrong_names_are_told():
    with pytest.raises(ValueError, match="none of the rows"):
        LayerExplorer([{"experiment": "e", "arm": "a", "configuration": {"seed": 0}, "metrics": {}}])
    with pytest.raises(ValueError, match="there is no arm 'scale: none'; the arms are: scale: few pairs"):
        LayerExplorer(rows(), chosen=["scale: none"])
    with pytest.raises(ValueError, match="quantity must be one of"):
        layer_values(layer_runs(rows())[0]["runs"][0], "fidelity")


# --- in the page ---


def shown(root):
    return json.loads(root.get_attribute("data-numbers"))


def as_page(widget):
    """The numbers of Python, as the page writes them."""
    series = [
        {
            name: [band._asdict() for band in value]
            if name == "curve"
            else getattr(value, "_asdict", lambda v=value: v)()
            for name, value in one._asdict().items()
        }
        for one in widget.numbers()
    ]
    return {"series": series, "level": widget.level()}


def agree(got, want):
    """Equal to 1e-9, all the way down."""
    if isinstance(want, dict):
        assert got.keys() == want.keys()
        for name in want:
            agree(got[name], want[name])
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            agree(one, other)
    elif isinstance(want, float):
        assert got == pytest.approx(want, rel=1e-9, abs=1e-9)
    else:
        assert got == want


@pytest.fixture
def opened(tmp_path, visit):
    seen = visit(write_page(LayerExplorer(rows()), tmp_path))
    root = seen.page.locator(".mirlib-widget")
    root.wait_for()
    yield seen, root
    assert seen.foreign == [] and seen.errors == []


@pytest.mark.browser
def test_the_page_computes_the_numbers_of_python(opened):
    _, root = opened
    widget = LayerExplorer(rows())
    agree(shown(root), as_page(widget))
    widget.chosen = [ALL_ARMS[4], ALL_ARMS[1], "", ALL_ARMS[2]]
    for letter, name in zip("ABCD", widget.chosen, strict=True):
        root.get_by_label(f"Curve {letter}").select_option(name)
    for seed in ("mean", "0", "1", "2"):
        for quantity in QUANTITIES:
            widget.seed, widget.quantity = seed, quantity
            root.get_by_label("Quantity").select_option(quantity)
            root.get_by_label("Seeds").select_option(seed)
            agree(shown(root), as_page(widget))


@pytest.mark.browser
def test_what_is_seen_are_these_numbers_and_how_many_seeds_they_have(opened):
    _, root = opened
    first, second = LayerExplorer(rows()).numbers()
    row = root.locator("tbody tr").first
    mir = f"{first.mir.mean:.3f}{first.mir.low:.3f} to {first.mir.high:.3f}"
    assert row.locator("[data-name=mir]").text_content() == mir
    assert float(row.locator("[data-name=layer]").get_attribute("data-value")) == pytest.approx(first.curve[0].mean)
    assert row.locator("th").text_content() == "A3 seeds"
    assert "A: 3 seeds, B: 2 seeds" in root.locator(".mirlib-note").text_content()
    assert second.name == ALL_ARMS[1], "the first and the last arm of the first experiment are shown at the start"
    # Curves differ in dashes, not in colour alone.
    dashes = root.locator("path[data-place]").evaluate_all("all => all.map(p => p.getAttribute('stroke-dasharray'))")
    assert len(dashes) == len(set(dashes)) == 2
    root.get_by_label("Seeds").select_option("1")
    assert "no run with seed 1" in root.locator("tbody tr").nth(1).text_content()


@pytest.mark.browser
def test_the_height_of_a_point_follows_the_axis(opened):
    _, root = opened
    heights = """root => root.querySelector('path[data-place=A]').getAttribute('d').slice(1).split('L')
        .map(point => Number(point.split(' ')[1]))"""
    values = np.array([band.mean for band in LayerExplorer(rows()).numbers()[0].curve])
    for scale in (np.log10, lambda v: v):
        drawn = np.array(root.evaluate(heights))
        slope = np.diff(drawn) / np.diff(scale(values))
        np.testing.assert_allclose(slope, slope[0], rtol=1e-6)
        assert slope[0] < 0, "larger is higher"
        root.get_by_label("Logarithmic axis").uncheck()


@pytest.mark.browser
def test_it_is_worked_by_keyboard_and_says_what_changed(opened):
    seen, root = opened
    root.get_by_label("Layer to read off").focus()
    seen.page.keyboard.press("ArrowRight")
    first = LayerExplorer(rows()).numbers()[0]
    cell = root.locator("tbody tr").first.locator("[data-name=layer]")
    assert float(cell.get_attribute("data-value")) == pytest.approx(first.curve[1].mean)
    said = root.locator("[aria-live]").element_handle()
    seen.page.wait_for_function("e => e.textContent.includes('at layer 2')", arg=said)
    assert "scale: few pairs, 3 seeds: MIR" in said.text_content()
    choice = root.get_by_label("Curve A")
    choice.focus()
    seen.page.keyboard.press("ArrowDown")
    assert choice.input_value() == ALL_ARMS[1]
    seen.page.wait_for_function("e => e.textContent.startsWith('A, scale: many pairs, 2 seeds')", arg=said)


@pytest.mark.browser
def test_everything_has_a_name_and_a_place_on_a_phone(tmp_path, visit):
    seen = visit(write_page(LayerExplorer(rows(), chosen=ALL_ARMS[:4]), tmp_path), width=360)
    root = seen.page.locator(".mirlib-widget")
    root.wait_for()
    names = root.evaluate("r => [...r.querySelectorAll('input, select')].map(i => i.labels[0]?.textContent.trim())")
    assert len(names) == 8 and all(names)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert root.locator("svg title").text_content().startswith("FID of every layer. A, scale: few pairs")
