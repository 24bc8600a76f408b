"""The widget in which a reader draws and asks: pictures, answers, costs and words are those of Python."""

import copy
import json

import numpy as np
import pytest
import torch
from replies import ask_pictures
from widget_pages import write_page

from mirlab import live, world
from mirlab.model import connectors, evaluation, train
from mirlib import MirlibError, lens, transport_map
from mirlib.align import norms
from mirlib.frechet import Moments, frechet_distance
from mirlib.loading import load_miniature
from mirlib.rows import collect_rows
from mirlib.transport import optimal_maps, row_costs, unreached_spread
from mirlib.widgets import engine
from mirlib.widgets.base import _read

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def untrained():
    model, processor = load_miniature()
    model = copy.deepcopy(model)
    connectors.replace(model, "mlp2", seed=0)
    return model, processor


def page_of(untrained, folder, visit):
    widget = live.ask_the_model({"untrained": untrained[0].model.multi_modal_projector, "shipped": None})
    engine.write_scripts(folder / "_static")
    (folder / "_static" / "book.css").write_text("")
    head = '<link rel="stylesheet" href="_static/book.css">'
    seen = visit(write_page(widget, folder, head))
    seen.page.set_default_timeout(240_000)
    settled(seen.page)
    return seen


@pytest.fixture
def opened(untrained, tmp_path, visit):
    seen = page_of(untrained, tmp_path, visit)
    yield seen.page
    assert seen.errors == [] and seen.foreign == []


@pytest.fixture(scope="module")
def asked(untrained, tmp_path_factory, visit_once):
    """The same, for questions to the engine and to functions of the page: nobody touches the widget."""
    seen = page_of(untrained, tmp_path_factory.mktemp("asked"), visit_once)
    yield seen.page
    assert seen.errors == [] and seen.foreign == []


def settled(page):
    page.wait_for_function(
        "() => !document.querySelector('.mirlib-ask').hasAttribute('aria-busy') && "
        "document.querySelector('.mirlib-ask [data-said]')"
    )


def pixels(page):
    read = """() => [...document.querySelector('.mirlib-ask canvas').getContext('2d')
      .getImageData(0, 0, 48, 48).data].filter((_, i) => i % 4 < 3)"""
    return np.array(page.evaluate(read), dtype=np.uint8).reshape(48, 48, 3)


def choose(page, **values):
    for name, value in values.items():
        page.locator(f'.mirlib-ask select[name="{name}"]').select_option(value)


def test_the_page_paints_what_python_paints(opened):
    """Every form in both sizes, with the noise; a pixel may be rounded the other way."""
    for form in world.FORMS:
        for size in world.SIZES:
            choose(opened, shape=form, size=size, colour="purple")
            thing = world.Thing(
                form, "purple", size, "topleft", writing=live.GALLERY_WRITING if form in "0123456789" else 0
            )
            other = world.Thing("square", "blue", "small", "bottomright")
            want = world.render(world.Scene((thing, other), background=110, noise_seed=0)).astype(int)
            away = np.abs(pixels(opened).astype(int) - want)
            assert away.max() <= 1 and (away > 0).mean() < 1e-3, (form, size)


def test_both_projectors_answer_as_in_python(opened, untrained):
    choose(opened, colour="green")
    opened.locator("select[name=question]").select_option("what colour is topleft ?")
    settled(opened)
    scene = world.Scene(
        (world.Thing("circle", "green", "large", "topleft"), world.Thing("square", "blue", "small", "bottomright")),
        background=110,
    )
    question = world.Question("colour_at", "what colour is topleft ?", "", "green")
    for name, (model, processor) in {"untrained": untrained, "shipped": load_miniature()}.items():
        (reply,) = ask_pictures(model, processor.tokenizer, scene, [question])
        (caption,) = evaluation.write_captions(model, processor.tokenizer, train.vision_features(model, [scene]))
        said = opened.locator(f'.mirlib-ask [data-said="{name}"]').inner_text()
        assert said == f"{reply.said} ({'right' if reply.is_right else 'wrong'})"
        shown = opened.locator(f'.mirlib-ask [data-caption="{name}"]').inner_text()
        assert shown.split() == caption.split()
        for word, share in zip(reply.words, reply.probabilities, strict=True):
            shown = opened.locator(f'.mirlib-ask [data-word="{word}"][data-model="{name}"]').get_attribute("data-value")
            assert float(shown) == pytest.approx(share, abs=2e-3)
    assert opened.locator('.mirlib-ask [data-caption="the truth"]').inner_text() == world.caption(scene)


def test_things_change_places_stay_in_their_cells_and_obey_the_keyboard(opened):
    choose(opened, cell="bottomright")
    truth = opened.locator('.mirlib-ask [data-caption="the truth"]')
    settled(opened)
    assert truth.inner_text() == "topleft square small blue . bottomright circle large red ."
    opened.locator('.mirlib-ask input[name="right"]').focus()
    for _ in range(4):
        opened.keyboard.press("ArrowRight")
    right = opened.locator('.mirlib-ask input[name="right"]')
    assert right.input_value() == right.get_attribute("max") == "1", "a large thing moves by one pixel"
    opened.get_by_role("button", name="Thing 2").click()
    assert right.input_value() == "0" and right.get_attribute("max") == "5"
    assert right.get_attribute("aria-valuetext") == "0 px"
    opened.locator('.mirlib-ask input[name="count"]').fill("4")
    settled(opened)
    assert len(world.parse_caption(truth.inner_text())) == 4


def test_a_mouse_takes_a_thing_along_and_a_finger_puts_one_down(opened):
    picture = opened.locator(".mirlib-ask .mirlib-picture")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()

    def at(x, y):
        return box["x"] + box["width"] * x, box["y"] + box["height"] * y

    opened.mouse.move(*at(0.75, 0.75))
    opened.mouse.down()
    opened.mouse.move(*at(0.25, 0.7), steps=4)
    opened.mouse.up()
    settled(opened)
    truth = opened.locator('.mirlib-ask [data-caption="the truth"]')
    assert truth.inner_text() == "topleft circle large red . bottomleft square small blue ."
    things = "'pointerType', { value: 'touch' }"
    x, y = at(0.75, 0.25)
    opened.evaluate(
        f"""([x, y]) => document.querySelector('.mirlib-ask .mirlib-picture').dispatchEvent(
          Object.defineProperty(new PointerEvent('click', {{ clientX: x, clientY: y }}), {things}))""",
        [x, y],
    )
    settled(opened)
    assert truth.inner_text() == "topleft circle large red . topright square small blue .", "the thing that was taken"


def test_a_question_in_the_readers_own_words_gets_the_likeliest(opened):
    typed = opened.locator('.mirlib-ask input[name="typed"]')
    typed.fill("is it  raining ?")
    typed.press("Enter")
    settled(opened)
    assert opened.locator("select[name=question]").input_value() == "is it raining ?"
    told = 0
    for row in opened.locator(".mirlib-ask .mirlib-answers tbody tr:not(.mirlib-said)").all():
        assert "✓" not in row.inner_text(), "nobody knows the truth"
        assert row.locator("th").inner_text().strip(), "every answer has a name"
        shares = [cell.get_attribute("data-value") for cell in row.locator("td").all()]
        assert all(
            share or cell.inner_text() == "–" for share, cell in zip(shares, row.locator("td").all(), strict=True)
        )
        told += sum(map(bool, shares))
    assert told == 10, "five of each model"


QUESTIONS = """([things, world]) => import(URL.createObjectURL(new Blob([SOURCE], {type: 'text/javascript'})))
  .then(m => m.questionsOf(things, world))"""


def test_questions_have_the_answers_that_python_gives(asked):
    """Where both ask the same, they agree."""
    source = _read("scenes.js") + _read("ask_the_model.js")
    ask = QUESTIONS.replace("SOURCE", "source").replace("([things, world])", "([source, things, world])")
    rng = np.random.default_rng(3)
    shared = 0
    for _ in range(40):
        scene = world.sample_scene(rng)
        things = [
            {"shape": t.shape, "colour": t.colour, "size": t.size, "cell": t.cell, "right": 0, "down": 0}
            for t in scene.things
        ]
        found = asked.evaluate(ask, [source, things, live.drawing()])
        theirs = {q.text: q.answer for q in live.questions_of(scene, most=16)}
        for question in found:
            assert question["answer"] in question["words"]
            if question["text"] in theirs:
                shared += 1
                assert question["answer"] == theirs[question["text"]], question
    assert shared > 200
    mixed = [dict(thing, shape=form) for thing, form in zip(things * 2, ("3", "circle"), strict=False)]
    for thing, cell in zip(mixed, world.CELLS, strict=False):
        thing["cell"] = cell
    for question in asked.evaluate(ask, [source, mixed, live.drawing()]):
        assert question["answer"] in question["words"], "a digit beside a shape"


# --- what goes on inside ---

SETTINGS = {"input": "", "projector": "trained", "gain": 1}


def ask(page, task, **given):
    return page.evaluate("([task, given]) => self.mirlibEngine.ask(task, given)", [task, given])


def flat(image):
    return np.asarray(image.convert("RGB")).ravel().tolist()


def costs_in_page(page, image):
    pictures, (text, *texts) = live.beside_drawings()
    beside = {"pictures": [flat(each) for each in pictures], "texts": texts}
    found = ask(page, "map", pixels=flat(image), text=text, beside=beside, settings=SETTINGS)
    return np.array(found["costs"], dtype=float), found["layers"]


def without_outliers(rows):
    norms = rows.norm(dim=1)
    return (norms - norms.median()).abs() <= 3 * norms.std()


def test_costs_and_words_of_five_scenes_are_those_of_the_library(asked):
    """Costs to 1e-4 of themselves, distances to 1e-5, probabilities and cosines to 1e-5; the same words."""
    model, processor = load_miniature()
    pictures, texts = live.beside_drawings()
    for scene in evaluation.held_out_scenes(5, seed=13):
        image = world.to_image(scene)
        want = transport_map(model, processor, [image, *pictures], texts, num=7, paired=True, progress=False)
        costs, (total, *layers) = costs_in_page(asked, image)
        mine = want.vision[want.images.index(0)]
        np.testing.assert_allclose(costs, mine, rtol=1e-4, equal_nan=True)
        assert [one["distance"] for one in layers] == pytest.approx(want.per_layer, rel=1e-5)
        assert total["distance"] == pytest.approx(want.per_layer.sum(), rel=1e-5)
        assert [one["kept"] for one in layers] == want.kept.tolist()
        every = [np.concatenate([want.patch_costs(n, k) for n in range(7)]) for k in (None, *range(1, 9))]
        tops = [np.nanquantile(values, 0.99) for values in every]
        assert [one["top"] for one in (total, *layers)] == pytest.approx(tops, rel=1e-4)

        read = lens(model, processor, image)
        for k, rows in enumerate(ask(asked, "lens", pixels=flat(image), settings=SETTINGS, most=5)):
            for side, words, values in (
                ("output", read.words, read.probabilities),
                ("input", read.neighbours, read.cosines),
            ):
                assert [[word for word, _ in row[side]] for row in rows] == words[k].tolist(), (k, side)
                np.testing.assert_allclose([[value for _, value in row[side]] for row in rows], values[k], atol=1e-5)


def test_a_word_costs_on_its_way_onto_other_words_what_the_library_finds(asked):
    """The texts beside the drawing: the first, third and fifth are moved onto the others."""
    pictures, (_, *texts) = live.beside_drawings()
    rows = collect_rows(*load_miniature(), pictures, texts)
    every = []
    _, layers = costs_in_page(asked, pictures[0])
    for layer, text in enumerate(rows.text):
        text = text.double() / text.double().norm(dim=1).mean()
        kept = without_outliers(text)
        even = rows.text_samples % 2 == 0
        clouds = [Moments.of(text[kept & half]) for half in (even, ~even)]
        map = optimal_maps(*(cloud.covariance for cloud in clouds)).forward
        costs = torch.zeros(len(text), dtype=torch.float64)
        costs[kept & even] = row_costs(text[kept & even], *clouds, map)
        every.append(costs[even])
        found = costs[kept & even]
        assert layers[layer + 1]["word"] == pytest.approx(float(found.mean()), rel=1e-4)
        assert layers[layer + 1]["high"] == pytest.approx(float(np.quantile(found, 0.95)), rel=1e-4)
    total = torch.stack(every).sum(dim=0)
    assert layers[0]["word"] == pytest.approx(float(total.mean()), rel=1e-4)
    assert layers[0]["high"] == pytest.approx(float(np.quantile(total, 0.95)), rel=1e-4)


def test_costs_add_up_to_the_distance_also_where_rows_are_few(asked):
    source = (engine.MINIATURE.parent / "widgets" / "engine.js").read_text(encoding="utf-8")
    for n, m, d in [(90, 70, 12), (6, 40, 16), (40, 6, 16), (5, 4, 16)]:
        rng = np.random.default_rng(n)
        x, y = rng.normal(size=(n, d)).astype(np.float32), (2 * rng.normal(size=(m, d)) + 1).astype(np.float32)
        got = asked.evaluate(
            """async ([source, x, y, d]) => {
              const engine = await import(URL.createObjectURL(new Blob([source], {type: 'text/javascript'})));
              const found = engine.layerCosts(Float32Array.from(x), Float32Array.from(y), d);
              return { ...found, costs: Array.from(found.costs) };
            }""",
            [source, x.ravel().tolist(), y.ravel().tolist(), d],
        )
        clouds = [torch.from_numpy(each).double() for each in (x, y)]
        vision, text = (each / clouds[1].norm(dim=1).mean() for each in clouds)
        kept = without_outliers(vision)
        vision, text = vision[kept], text[without_outliers(text)]
        own, other = Moments.of(vision), Moments.of(text)
        map = optimal_maps(own.covariance, other.covariance).forward
        costs = np.array(got["costs"])
        assert np.array_equal(~np.isnan(costs), kept) and got["kept"] == len(vision)
        assert got["distance"] == pytest.approx(frechet_distance(vision, text).total, rel=1e-6)
        assert costs[kept].mean() + got["unreached"] == pytest.approx(got["distance"], rel=1e-9)
        assert got["unreached"] == pytest.approx(unreached_spread(own, other, map), rel=1e-6, abs=1e-9)
        np.testing.assert_allclose(costs[kept], row_costs(vision, own, other, map), rtol=1e-6)


def look_inside(page, view):
    page.locator(f'.mirlib-ask [data-view="{view}"]').press("Enter")
    page.wait_for_function("() => !document.querySelector('.mirlib-ask').hasAttribute('aria-busy')")


def numbers(page):
    return json.loads(page.locator(".mirlib-ask").get_attribute("data-numbers"))


def test_a_keyboard_and_a_touch_read_what_a_patch_costs(opened):
    assert not opened.locator(".mirlib-ask .mirlib-stage").is_visible()
    look_inside(opened, "costs")
    stage = opened.locator(".mirlib-ask .mirlib-stage")
    stage.press("Home")
    first = numbers(opened)
    head = opened.locator(".mirlib-ask .mirlib-costs thead th")
    assert head.inner_text() == "Patch in row 1, column 1, all layers"
    assert sum(first["by_layer"]) == pytest.approx(first["cost"])
    stage.press("ArrowRight")
    assert "row 1, column 2" in head.inner_text() and numbers(opened)["cost"] != first["cost"]
    opened.locator('.mirlib-ask .mirlib-costs [name="layer"]').press("ArrowRight")
    assert head.inner_text() == "Patch in row 1, column 2, layer 1"
    opened.locator('.mirlib-ask [data-patch="14"]').click()
    assert "row 3, column 3" in head.inner_text()
    before = numbers(opened)
    choose(opened, colour="green")
    opened.wait_for_function("() => !document.querySelector('.mirlib-ask').hasAttribute('aria-busy')")
    assert numbers(opened) != before, "another picture, other costs"
    for part in (
        ".mirlib-ask select[name=question]",
        ".mirlib-ask .mirlib-picture",
        ".mirlib-ask table.mirlib-answers",
    ):
        assert not opened.locator(part).first.is_visible(), "one thing at a time"


def test_the_words_on_the_patches_are_those_of_the_chosen_model(opened, untrained):
    look_inside(opened, "words")
    image = world.to_image(
        world.Scene(
            (world.Thing("circle", "red", "large", "topleft"), world.Thing("square", "blue", "small", "bottomright")),
            background=110,
        )
    )
    for name, (model, processor) in {"shipped": load_miniature(), "untrained": untrained}.items():
        choose(opened, inside=name)
        opened.wait_for_function("() => !document.querySelector('.mirlib-ask').hasAttribute('aria-busy')")
        want = lens(model, processor, image, k=1)
        sliders = opened.locator('.mirlib-ask [name="layer"]').all()
        (slider,) = (each for each in sliders if each.is_visible())
        for layer in (0, 8):
            slider.fill(str(layer))
            shown = opened.locator(".mirlib-ask .mirlib-word").all_text_contents()
            assert shown == [word.strip() for word in want.words[layer, :, 0]], (name, layer)


def test_projectors_of_another_shape_are_refused():
    """The page would run another model without a word."""
    model, _ = load_miniature()
    projector = model.model.multi_modal_projector
    norms.attach(model, "matched")
    for wrong in (projector, torch.nn.Linear(96, 128)):
        with pytest.raises(MirlibError, match="projectors of the miniature's shape alone"):
            live.ask_the_model({"one": wrong})
