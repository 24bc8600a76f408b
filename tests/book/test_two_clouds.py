"""The widget of the two clouds: the maths in Python, and the same maths in the page."""

import json
import math

import numpy as np
import pytest
import torch
import traitlets
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from mirlib.widgets import TwoClouds
from mirlib.widgets.two_clouds import TEXT_MEAN, TEXT_SPREAD, CloudDistance, cloud_distance, mean_norm

START = TwoClouds().state()
STATES = [
    START,
    {**START, "mean_shift": 5.0},
    {**START, "vision_scale": 0.2, "anisotropy": 5.0, "rotation": -90.0},
    {**START, "layer_scale": 4.0, "text_centric": True},
    {**START, "mean_shift": 6.0, "vision_scale": 3.0, "rotation": 77.0, "layer_scale": 0.25, "text_centric": True},
    {**START, "mean_shift": 0.0, "vision_scale": 1.0, "anisotropy": 2.0, "rotation": 0.0},
]

sliders = st.fixed_dictionaries(
    {
        "mean_shift": st.floats(0, 6),
        "vision_scale": st.floats(0.2, 3),
        "rotation": st.floats(-90, 90),
        "anisotropy": st.floats(1, 5),
    }
)


@given(sliders)
@settings(max_examples=50, deadline=None)
def test_the_closed_form_is_the_trace_of_the_matrix_square_root(state):
    got = cloud_distance(**state)
    angle = math.radians(state["rotation"])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.sqrt(state["anisotropy"])
    spread = state["vision_scale"] * np.sqrt(TEXT_SPREAD.prod()) * np.array([stretch, 1 / stretch])
    a, b = turn @ np.diag(spread**2) @ turn.T, np.diag(TEXT_SPREAD**2)
    want = np.trace(a + b) - 2 * np.trace(sqrtm(a @ b)).real
    assert got.covariance_term == pytest.approx(want, abs=1e-7)
    assert got.mean_term == pytest.approx(state["mean_shift"] ** 2)
    assert got.total == got.mean_term + got.covariance_term


@given(sliders, st.floats(0.25, 4))
@settings(max_examples=50, deadline=None)
def test_text_centric_scaling_removes_the_scale_of_the_layer(state, layer_scale):
    plain, scaled = cloud_distance(**state), cloud_distance(**state, layer_scale=layer_scale)
    assert scaled.total == pytest.approx(layer_scale**2 * plain.total, rel=1e-9, abs=1e-9)
    centred = cloud_distance(**state, text_centric=True)
    assert cloud_distance(**state, layer_scale=layer_scale, text_centric=True).total == pytest.approx(
        centred.total, rel=1e-9, abs=1e-9
    )
    assert scaled.norm_ratio == pytest.approx(plain.norm_ratio)


def test_equal_clouds_have_distance_zero():
    got = cloud_distance(mean_shift=0, vision_scale=1, rotation=0, anisotropy=2)
    assert got == CloudDistance(0.0, 0.0, 0.0, -math.inf, 1.0, 1.0)


def test_the_mean_norm_is_that_of_a_large_sample():
    covariance = np.array([[2.0, 0.7], [0.7, 0.5]])
    rows = torch.randn(2_000_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = rows @ torch.from_numpy(np.linalg.cholesky(covariance)).T + torch.from_numpy(TEXT_MEAN)
    assert mean_norm(TEXT_MEAN, covariance) == pytest.approx(rows.norm(dim=1).mean().item(), rel=2e-3)


def test_the_mean_norm_of_a_round_cloud_at_the_origin_is_known():
    assert mean_norm(np.zeros(2), np.eye(2)) == pytest.approx(math.sqrt(math.pi / 2), rel=1e-12)


def test_the_mean_norm_of_a_far_narrow_cloud_is_its_distance():
    # For a cloud of spread s at distance r the norm is r + s²/(2r) and terms of the fourth order in s/r.
    assert mean_norm(np.array([8.0, 0.0]), 0.01 * np.eye(2)) == pytest.approx(8 + 0.01 / 16, rel=1e-6)


def test_the_two_forms_travel_together():
    widget = TwoClouds(rotation=-10.0)
    data, _ = widget._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == widget.model_id
    assert '"rotation": -10.0' in data["text/html"]
    html = data["text/html"].replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert "http:" not in html and "https:" not in html


def test_a_state_cannot_end_the_script_early():
    from mirlib.widgets.base import _literal

    assert json.loads(_literal("</script><!--")) == "</script><!--"
    assert "<" not in _literal("</script><!--")


@pytest.mark.parametrize("trait, value", [("mean_shift", -1.0), ("anisotropy", 9.0)])
def test_a_value_outside_the_slider_is_refused(trait, value):
    widget = TwoClouds()
    with pytest.raises(traitlets.TraitError, match=trait):
        setattr(widget, trait, value)


# --- in the page ---

SET = """([root, state]) => {
  for (const [name, value] of Object.entries(state)) {
    const input = root.querySelector(`[name=${name}]`);
    if (typeof value === 'boolean') { if (input.checked !== value) input.click(); continue; }
    input.step = 'any';  // states between the steps of the slider
    input.value = value;
    input.dispatchEvent(new Event('input', {bubbles: true}));
  }
}"""
READ = """root => Object.fromEntries(
  [...root.querySelectorAll('[data-value]')].map(e => [e.dataset.name, Number(e.dataset.value)]))"""


def shown(root):
    return CloudDistance(**{k: float(v) for k, v in root.evaluate(READ).items()})


@pytest.fixture
def opened(site, address, visit):
    """The first of the two clouds' widgets on a page, over http and from disk."""
    seen = visit(address(site.with_widget("two_clouds")))
    root = seen.page.locator(".mirlib-widget").first
    root.wait_for()
    yield seen, root
    assert seen.foreign == [] and seen.errors == []


@pytest.mark.browser
def test_the_page_computes_the_numbers_of_python(opened):
    _, root = opened
    for state in STATES:
        root.page.evaluate(SET, [root.element_handle(), state])
        assert shown(root) == pytest.approx(cloud_distance(**state), rel=1e-9, abs=1e-9), state


@pytest.mark.browser
def test_a_slider_moves_by_keyboard_and_the_page_answers(opened):
    seen, root = opened
    before = shown(root)
    slider = root.get_by_label("Shift of the vision mean")
    slider.focus()
    for _ in range(10):
        seen.page.keyboard.press("ArrowRight")
    after = shown(root)
    assert after.mean_term > before.mean_term and after.covariance_term == before.covariance_term
    assert root.locator("output").first.text_content() == "3.5"
    spoken = root.locator("[aria-live]")
    seen.page.wait_for_function("e => e.textContent.includes('12.85')", arg=spoken.element_handle())
    root.get_by_role("button", name="Reset").click()
    assert shown(root) == pytest.approx(before)
    root.get_by_role("button", name="Make the clouds equal").click()
    assert shown(root).total == 0 and "−∞" in root.locator("[data-name=log10]").text_content()


@pytest.mark.browser
def test_everything_has_a_name_and_a_place_on_a_phone(site, served, visit):
    path = site.with_widget("two_clouds")
    seen = visit(f"{served}/{path.relative_to(site.folder).as_posix()}", width=360)
    root = seen.page.locator(".mirlib-widget").first
    root.wait_for()
    names = root.evaluate("r => [...r.querySelectorAll('input')].map(i => i.labels[0]?.textContent.trim() ?? '')")
    assert len(names) == 6 and all(names)
    box = root.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    assert root.locator("svg title").text_content().startswith("A vision cloud and a text cloud.")


@pytest.mark.browser
def test_two_widgets_on_a_page_are_independent(site, served, visit):
    if site.is_whole:
        pytest.skip("the sample page has two widgets, the built book need not have")
    seen = visit(f"{served}/notebooks/sample.html")
    roots = seen.page.locator(".mirlib-widget")
    roots.nth(1).wait_for()
    other = shown(roots.nth(1))
    assert other == pytest.approx(cloud_distance(**{**START, "mean_shift": 1.0, "text_centric": True}), rel=1e-9)
    seen.page.evaluate(SET, [roots.nth(0).element_handle(), {"mean_shift": 6.0}])
    assert shown(roots.nth(0)).mean_term == pytest.approx(36) and shown(roots.nth(1)) == other
