"""The pictures × texts picker: its numbers in Python, and the same numbers in the page."""

import json

import numpy as np
import pytest
from widget_pages import write_page

from mirlib.widgets import RobustnessPicker
from mirlib.widgets.robustness import cell_numbers, count_numbers, range_of_cells, robustness_models

PICTURES, TEXTS, COUNTS = ("scenes", "scans"), ("news", "code", "topics"), (1, 10, 100, 1000)
UNIT = 0.25


def rows():
    """Three models; the row before them is of another study."""
    made = [{"experiment": "scale", "arm": "other", "configuration": {"seed": 0}, "metrics": {"mir": {"value": 1.0}}}]
    for seed in range(3):
        rng = np.random.default_rng([4, seed])
        level = rng.uniform(0.5, 2)
        kinds = {p: {t: (level + rng.normal(0, 0.1, 3)).tolist() for t in TEXTS} for p in PICTURES}
        counts = {str(n): (level + rng.normal(0, 0.2 / n**0.5, 5)).tolist() for n in COUNTS}
        metrics = {"kinds": kinds, "counts": counts, "mir": {"value": level}}
        made.append({"experiment": "r", "arm": "plain", "configuration": {"seed": seed}, "metrics": metrics})
    return made


@pytest.fixture
def models():
    return robustness_models(rows())


def test_rows_of_other_studies_are_left_out_and_values_keep_six_digits(models):
    assert [model["seed"] for model in models] == [0, 1, 2]
    own = rows()[1]["metrics"]
    np.testing.assert_allclose(models[0]["kinds"]["scans"]["code"], own["kinds"]["scans"]["code"], rtol=5e-6)
    np.testing.assert_allclose(models[0]["counts"]["10"], own["counts"]["10"], rtol=5e-6)


def test_differences_are_taken_within_a_model(models):
    draws = np.array([[model["kinds"][p][t] for p, t in (("scans", "code"), ("scenes", "news"))] for model in models])
    means = draws.mean(axis=2)
    got = cell_numbers(models, ("scans", "code"), ("scenes", "news"), UNIT)
    differences = means[:, 0] - means[:, 1]
    assert got.difference == pytest.approx(differences.mean())
    assert (got.difference_low, got.difference_high) == pytest.approx((differences.min(), differences.max()))
    assert got.in_units == pytest.approx(differences.mean() / UNIT)
    # The levels of the models lie far apart; the differences must not.
    assert got.difference_high - got.difference_low < np.ptp(means[:, 0])
    assert (got.mean, got.low, got.high) == pytest.approx((draws[:, 0].mean(), draws[:, 0].min(), draws[:, 0].max()))
    assert got.draw_range == pytest.approx(np.ptp(draws[:, 0], axis=1).mean())
    assert got.values == 9


def test_the_reference_differs_from_itself_by_nothing(models):
    got = cell_numbers(models, ("scans", "news"), ("scans", "news"))
    assert (got.difference, got.difference_low, got.difference_high, got.in_units) == (0, 0, 0, None)


def test_numbers_of_samples_give_the_spread_of_the_draws_of_a_model(models):
    draws = np.array([model["counts"]["10"] for model in models])
    largest = np.array([model["counts"]["1000"] for model in models])
    got = count_numbers(models, "10", UNIT)
    assert got.deviation == pytest.approx(draws.std(axis=1, ddof=1).mean())
    assert got.draw_range == pytest.approx(np.ptp(draws, axis=1).mean())
    assert got.shift == pytest.approx(draws.mean() - largest.mean())
    assert got.in_units == pytest.approx(got.draw_range / UNIT)
    assert count_numbers([{"counts": {"5": [1.0]}}], "5").deviation is None


def test_the_range_over_the_cells_is_that_of_one_model(models):
    means = np.array([[np.mean(m["kinds"][p][t]) for p in PICTURES for t in TEXTS] for m in models])
    assert range_of_cells(models) == pytest.approx(np.ptp(means, axis=1).mean())


def test_bad_input_is_told():
    with pytest.raises(ValueError, match="none of the rows"):
        RobustnessPicker(rows()[:1])
    with pytest.raises(ValueError, match="positive difference"):
        RobustnessPicker(rows(), reference=-0.1)


def test_a_difference_to_measure_by_may_be_given():
    picker = RobustnessPicker(rows(), reference=0.5, cell=["scans", "code"])
    assert picker.numbers().in_units == pytest.approx(picker.numbers().difference / 0.5)
    assert RobustnessPicker(rows()).numbers().in_units is None


def test_a_start_can_be_picked_and_counts_may_be_missing():
    source = rows()[1:]
    for row in source:
        del row["metrics"]["counts"]
    picker = RobustnessPicker(source, model="2", cell=["scans", "topics"])
    assert picker.count_numbers() is None and picker.numbers().values == 3
    assert RobustnessPicker(rows()).count == "100", "the number of samples that MIR takes by default"


# --- in the page ---


def shown(root):
    return json.loads(root.get_attribute("data-numbers"))


def check(root, picker):
    got = shown(root)
    cell, count = picker.numbers()._asdict(), picker.count_numbers()._asdict()
    assert got["cell"] == pytest.approx(cell, rel=1e-9, abs=1e-9)
    assert got["count"] == pytest.approx(count, rel=1e-9, abs=1e-9)
    assert got["cells"] == pytest.approx(range_of_cells(picker.shown()), rel=1e-9)


@pytest.fixture
def opened(tmp_path, visit):
    picker = RobustnessPicker(rows(), reference=UNIT)
    seen = visit(write_page(picker, tmp_path))
    root = seen.page.locator(".mirlib-widget")
    root.wait_for()
    yield seen, root, picker
    assert seen.foreign == [] and seen.errors == []


def button(root, picture, text):
    return root.locator(f"button[data-picture={picture}][data-text={text}]")


@pytest.mark.browser
def test_the_page_computes_the_numbers_of_python(opened):
    seen, root, picker = opened
    for model in ("all", "1", "2"):
        root.get_by_label("Model").select_option(model)
        picker.model = model
        for picture in PICTURES:
            for text in TEXTS:
                button(root, picture, text).click()
                picker.cell = [picture, text]
                check(root, picker)
        root.get_by_role("button", name="Make this cell the reference").click()
        picker.reference_cell = picker.cell
        root.get_by_label("Number of samples N").focus()
        for key, count in (("Home", "1"), ("End", "1000"), ("ArrowLeft", "100")):
            seen.page.keyboard.press(key)
            picker.count = count
            check(root, picker)


@pytest.mark.browser
def test_a_cell_shows_its_mean_and_its_difference_and_the_pointer_previews_it(opened):
    seen, root, picker = opened
    cell = button(root, "scans", "code")
    want = cell_numbers(picker.shown(), ("scans", "code"), ("scenes", "news"), UNIT)
    signed = f"{want.difference:+.3f}".replace("-", "−")
    assert cell.text_content() == f"{want.mean:.3f}{signed}"
    before = shown(root)["cell"]
    cell.hover()
    assert shown(root)["cell"]["mean"] == pytest.approx(want.mean)
    assert root.locator("[data-name=title]").text_content() == "scans with code, 3 models"
    assert cell.get_attribute("aria-pressed") == "false"
    seen.page.mouse.move(1, 1)
    assert shown(root)["cell"] == before
    dots = root.locator("circle[data-count='10']")
    assert dots.count() == 15, "five draws of three models"
    labels = root.locator("svg.mirlib-plot text").all_text_contents()
    assert {"1", "100", "1000"} <= set(labels), "the present N and both ends"
    assert "U is 0.250" in root.locator(".mirlib-note").text_content()
    strength = cell.evaluate("b => parseFloat(b.style.getPropertyValue('--mirlib-strength'))")
    assert strength == pytest.approx(40 * min(1, abs(want.difference) / (UNIT / 4)), abs=1e-6)


@pytest.mark.browser
def test_the_grid_is_walked_by_arrow_keys_and_says_where_it_is(opened):
    seen, root, picker = opened
    button(root, "scenes", "news").focus()
    for key in ("ArrowUp", "ArrowRight", "ArrowDown"):  # the first leads nowhere
        seen.page.keyboard.press(key)
    assert button(root, "scans", "code").get_attribute("aria-pressed") == "true"
    focused = seen.page.evaluate("document.activeElement.getAttribute('aria-label')")
    want = cell_numbers(picker.shown(), ("scans", "code"), ("scenes", "news"), UNIT)
    assert focused.startswith(f"scans with code: MIR {want.mean:.3f}")
    said = root.locator("[aria-live]").element_handle()
    seen.page.wait_for_function("e => e.textContent.startsWith('scans with code: MIR')", arg=said)
    assert " U. With 100 samples" in said.text_content()
    assert root.locator(".mirlib-cells button[tabindex='0']").count() == 1, "one stop for the tab key"


@pytest.mark.browser
def test_everything_has_a_name_and_a_place_on_a_phone(tmp_path, visit):
    seen = visit(write_page(RobustnessPicker(rows()), tmp_path), width=360)
    root = seen.page.locator(".mirlib-widget")
    root.wait_for()
    names = root.evaluate("r => [...r.querySelectorAll('input, select')].map(i => i.labels[0]?.textContent.trim())")
    assert len(names) == 2 and all(names)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert " U" not in root.text_content(), "none was given"
