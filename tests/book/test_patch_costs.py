"""The widget of the costs of patches: the numbers in Python, and the same numbers in the page."""

import base64
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from widget_pages import write_page

from mirlib.grids import PatchGrid, whole
from mirlib.widgets import PatchCosts
from mirlib.widgets.patch_costs import PatchReading, reading

LAYERS = 3


def made_map(grids=None):
    """Three pictures of 2 x 3 patches, whose costs are known; the middle one has a patch that layer 2 drops."""
    random = np.random.default_rng(0)
    vision = [random.uniform(1, 4, (LAYERS, 6)) for _ in range(3)]
    vision[1][1, 2] = np.nan
    vision[2] += 2

    def patch_costs(number, layer=None):
        return np.nansum(vision[number], axis=0) if layer is None else vision[number][layer - 1]

    return SimpleNamespace(
        vision=tuple(vision),
        per_layer=np.nanmean(np.concatenate(vision, axis=1), axis=1),
        kept=np.array([18, 17, 18]),
        names=("folder/a.png", "b.png", "c.png"),
        grids=grids or (whole(2, 3),) * 3,
        null_level=lambda layer=None: SimpleNamespace(mean=0.3 if layer is None else 0.1, high=0.2),
        ranking=lambda: np.argsort([-patch_costs(number).mean() for number in range(3)]),
        patch_costs=patch_costs,
    )


def made(map=None, **state):
    pictures = {number: np.full((40, 60, 3), 60 * number, np.uint8) for number in range(3)}
    return PatchCosts(map or made_map(), pictures, **state)


def test_the_numbers_are_those_of_the_map():
    map = made_map()
    widget = made(map)
    assert widget.pictures[0]["name"] == "c.png" and widget.patch == map.patch_costs(2).argmax()
    said = widget.numbers()
    assert said.cost == pytest.approx(map.vision[2][:, widget.patch].sum(), rel=0.005)
    assert said.words == pytest.approx(said.cost / 0.3)
    share = (map.vision[2][:, widget.patch] / map.kept).sum() / map.per_layer.sum()
    assert said.share == pytest.approx(share, rel=0.005)
    widget.layer = 2
    assert widget.numbers().cost == pytest.approx(map.vision[2][1, widget.patch], rel=0.005)
    assert widget.numbers().share == pytest.approx(map.vision[2][1, widget.patch] / 17 / map.per_layer[1], rel=0.005)


def test_shares_of_all_patches_add_up():
    widget = made()
    for layer in range(LAYERS + 1):
        readings = [reading(p, widget.layers, layer, i) for p in widget.pictures for i in range(6)]
        assert sum(one.share for one in readings if one.cost is not None) == pytest.approx(1, abs=0.005)


def test_a_dropped_patch_has_no_cost_in_its_layer():
    widget = made(picture=[p["name"] for p in made().pictures].index("b.png"), patch=2, layer=2)
    said = widget.numbers()
    assert said[:3] == (None, None, None) and said.by_layer[1] is None and said.by_layer[0] > 0


def test_the_state_is_small_and_holds_the_pictures():
    widget = made()
    text = json.dumps(widget.state())
    assert "NaN" not in text and len(text) < 5000
    data = base64.b64decode(widget.pictures[0]["address"].partition(",")[2])
    assert np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[5, 5].tolist() == [120, 120, 120]


def test_pictures_that_belong_to_no_sample_are_refused():
    with pytest.raises(ValueError, match="by the numbers of its samples"):
        PatchCosts(made_map(), {7: np.zeros((4, 4, 3), np.uint8)})


# --- in the page ---


@pytest.fixture
def opened(visit, tmp_path):
    """Opens a page with one widget; afterwards nothing may have gone wrong in it."""
    pages = []

    def open_page(widget, width=1200):
        seen = visit(write_page(widget, tmp_path), width)
        root = seen.page.locator(".mirlib-widget")
        root.wait_for()
        pages.append(seen)
        return seen.page, root

    yield open_page
    for seen in pages:
        assert seen.foreign == [] and seen.errors == []


def shown(root):
    found = json.loads(root.get_attribute("data-numbers"))
    return PatchReading(**{**found, "by_layer": tuple(found["by_layer"])})


@pytest.mark.browser
def test_the_page_computes_the_numbers_of_python(opened):
    widget = made()
    page, root = opened(widget)
    for layer in range(LAYERS + 1):
        root.locator("[name=layer]").fill(str(layer))
        for place in range(3):
            root.locator("[name=picture]").select_option(str(place))
            for patch, tile in enumerate(root.locator("[data-patch]").all()):
                tile.hover()
                want = reading(widget.pictures[place], widget.layers, layer, patch)
                got = shown(root)
                assert got.by_layer == want.by_layer
                assert got[:3] == (pytest.approx(want[:3], rel=1e-12) if want.cost is not None else want[:3])


@pytest.mark.browser
def test_arrow_keys_walk_over_the_patches_and_are_heard(opened):
    page, root = opened(made(patch=0))
    stage = root.locator(".mirlib-stage")
    stage.focus()
    for key, place in [
        ("ArrowRight", "row 1, column 2"),
        ("ArrowDown", "row 2, column 2"),
        ("ArrowDown", "row 2, column 2"),  # the edge
        ("ArrowLeft", "row 2, column 1"),
        ("ArrowLeft", "row 2, column 1"),
        ("ArrowUp", "row 1, column 1"),
        ("End", "row 2, column 3"),
        ("Home", "row 1, column 1"),
    ]:
        page.keyboard.press(key)
        assert place in root.locator("thead").text_content()
    spoken = root.locator("[aria-live]")
    page.wait_for_function(
        "e => e.textContent.includes('patch in row 1, column 1, all layers: cost')", arg=spoken.element_handle()
    )
    assert "Arrow keys move. patch in row 1, column 1" in stage.get_attribute("aria-label")


@pytest.mark.browser
def test_a_touch_reads_a_patch_and_a_new_picture_shows_its_dearest(opened):
    widget = made(patch=0)
    page, root = opened(widget)
    root.locator("[data-patch='4']").click()
    assert "row 2, column 2" in root.locator("thead").text_content()
    root.locator("[name=picture]").select_option("1")
    costs = [reading(widget.pictures[1], widget.layers, 0, patch).cost for patch in range(6)]
    assert shown(root).cost == pytest.approx(max(costs))


@pytest.mark.browser
def test_a_dropped_patch_says_so(opened):
    page, root = opened(made(picture=[p["name"] for p in made().pictures].index("b.png"), patch=2, layer=2))
    assert root.locator("[data-name=cost]").text_content() == "dropped"
    assert "outlier rule drops this patch" in root.locator(".mirlib-note").text_content()


@pytest.mark.browser
def test_rows_without_a_place_are_a_strip_or_left_out(opened):
    tiled = PatchGrid(1, 4, np.array([-1, -1, 0, 1, 2, 3]))
    page, root = opened(made(made_map((tiled,) * 3), patch=3))
    assert root.locator("[data-patch]").count() == 4
    assert "2 more rows stand for no single place" in root.locator(".mirlib-note").text_content()
    page, root = opened(made(made_map((None,) * 3), patch=0))
    assert root.locator("[data-patch]").count() == 6 and "Patch 1 of 6" in root.locator("thead").text_content()
    root.locator(".mirlib-stage").focus()
    page.keyboard.press("ArrowRight")
    assert "Patch 2 of 6" in root.locator("thead").text_content()


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 390])
def test_everything_has_a_name_and_fits_on_a_phone(opened, width):
    page, root = opened(made(), width)
    names = root.evaluate(
        "r => [...r.querySelectorAll('input, select')].map(i => i.labels[0]?.textContent.trim() ?? '')"
    )
    assert names == ["Picture", "Layer (all: their sum)", "Colour the patches"]
    box = root.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    numbers = root.locator("[data-name=share]").bounding_box()
    assert numbers["y"] + numbers["height"] < 700  # above the fold
    assert "95 % below" in root.locator("svg").nth(1).text_content()
