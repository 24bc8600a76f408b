"""The widget in which a reader draws and asks: pictures and answers are those of Python."""

import copy

import numpy as np
import pytest
from widget_pages import write_page

from mirlab import live, world
from mirlab.model import connectors, evaluation, train
from mirlib.loading import load_miniature
from mirlib.widgets import engine
from mirlib.widgets.base import _read

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def untrained():
    model, processor = load_miniature()
    model = copy.deepcopy(model)
    connectors.replace(model, "mlp2", seed=0)
    return model, processor


@pytest.fixture
def opened(untrained, tmp_path, visit):
    widget = live.ask_the_model({"untrained": untrained[0].model.multi_modal_projector, "shipped": None})
    engine.write_scripts(tmp_path / "_static")
    (tmp_path / "_static" / "book.css").write_text("")
    head = '<link rel="stylesheet" href="_static/book.css">'
    seen = visit(write_page(widget, tmp_path, head))
    seen.page.set_default_timeout(240_000)
    settled(seen.page)
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
    opened.locator("#mirlib-question").select_option("what colour is topleft ?")
    settled(opened)
    scene = world.Scene(
        (world.Thing("circle", "green", "large", "topleft"), world.Thing("square", "blue", "small", "bottomright")),
        background=110,
    )
    question = world.Question("colour_at", "what colour is topleft ?", "", "green")
    for name, (model, processor) in {"untrained": untrained, "shipped": load_miniature()}.items():
        (reply,) = live.ask_pictures(model, processor.tokenizer, scene, [question])
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
    assert opened.locator('.mirlib-ask input[name="right"]').input_value() == "1", "a large thing moves by one pixel"
    opened.locator('.mirlib-ask input[name="count"]').fill("4")
    settled(opened)
    assert len(world.parse_caption(truth.inner_text())) == 4


def test_a_question_in_the_readers_own_words_gets_the_likeliest(opened):
    typed = opened.locator('.mirlib-ask input[name="typed"]')
    typed.fill("is it  raining ?")
    typed.press("Enter")
    settled(opened)
    assert opened.locator("#mirlib-question").input_value() == "is it raining ?"
    shares = [float(cell.get_attribute("data-value")) for cell in opened.locator('[data-model="shipped"]').all()]
    assert max(shares) > 0 and 5 <= len(shares) <= 10


QUESTIONS = """([things, world]) => import(URL.createObjectURL(new Blob([SOURCE], {type: 'text/javascript'})))
  .then(m => m.questionsOf(things, world))"""


def test_questions_have_the_answers_that_python_gives(opened):
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
        asked = opened.evaluate(ask, [source, things, live.drawing()])
        theirs = {q.text: q.answer for q in live.questions_of(scene, most=16)}
        for question in asked:
            assert question["answer"] in question["words"]
            if question["text"] in theirs:
                shared += 1
                assert question["answer"] == theirs[question["text"]], question
    assert shared > 200
