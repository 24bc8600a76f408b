"""The miniature in the page: the same numbers and the same answers as in Python, and the widget of two clouds."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from replies import ask_pictures

from mirlab import live, world
from mirlab.measuring import pictures_of, texts_of
from mirlab.model import evaluation
from mirlib import frechet_distance, modality_integration_rate
from mirlib.loading import load_miniature
from mirlib.rows import collect_rows
from mirlib.widgets import TheModel, engine

SETTINGS = {"input": "scenes", "projector": "trained", "gain": 1}
ASK = "([task, given]) => self.mirlibEngine.load(() => {}).then(() => self.mirlibEngine.ask(task, given))"


@pytest.fixture(scope="module")
def miniature():
    return load_miniature()


def visited(visit, at):
    seen = visit(at)
    seen.page.set_default_timeout(240_000)
    settled(seen.page)  # the widget measures as soon as the page is open; a test that came before would be dropped
    return seen


def test_a_guess_before_the_first_reading_is_answered(site, visit):
    """The page invites it; whoever guesses while the model is still loading loses nothing."""
    seen = visit(site.with_widget("the_model").as_uri())
    seen.page.set_default_timeout(240_000)
    seen.page.locator(".mirlib-guesses button").first.click()
    seen.page.wait_for_function(f"() => /^(Yes|No)/.test({ANSWER}.textContent)")
    settled(seen.page)
    assert seen.page.locator("svg circle").count() > 50


def test_weights_that_did_not_come_are_asked_for_again(site, served, visit):
    seen = visit()
    seen.page.set_default_timeout(240_000)
    seen.page.route("**/miniature/1.js", lambda route: route.abort())
    seen.go(f"{served}/{site.with_widget('the_model').relative_to(site.folder).as_posix()}")
    seen.page.locator(".mirlib-guesses button").first.click()
    seen.page.wait_for_function(f"() => {ANSWER}.textContent.includes('miniature/1.js is not there. Try again.')")
    seen.page.unroute("**/miniature/1.js")
    seen.page.locator(".mirlib-guesses button").first.click()
    seen.page.wait_for_function(f"() => /^(Yes|No)/.test({ANSWER}.textContent)")
    assert not seen.errors


@pytest.fixture
def opened(site, address, visit):
    """The page with the widget, over http and from disk."""
    seen = visited(visit, address(site.with_widget("the_model")))
    yield seen
    assert not seen.foreign and not seen.errors


@pytest.fixture(scope="module")
def asked(site, visit_once):
    """The same, from disk and once, for questions to the engine."""
    return visited(visit_once, site.with_widget("the_model").as_uri())


def ask(seen, task, **given):
    return seen.page.evaluate(ASK, [task, given])


def pixels(image):
    return np.asarray(image.convert("RGB")).ravel().tolist()


# --- what travels ---


def decoded(text, length):
    """`engine.as_text` backwards, number by number."""
    bits = "".join(
        f"{engine.ALPHABET.index(a) * 91 + engine.ALPHABET.index(b):013b}"
        for a, b in zip(text[::2], text[1::2], strict=True)
    )
    return bytes(int(bits[8 * i : 8 * i + 8], 2) for i in range(length))


@pytest.mark.parametrize("length", [0, 1, 13, 14, 1000])
def test_bytes_come_back_from_text(length):
    data = np.random.default_rng(length).bytes(length)
    assert decoded(engine.as_text(data), length) == data


def test_the_scripts_are_text_of_at_most_five_megabytes(tmp_path):
    paths = engine.write_scripts(tmp_path)
    assert sum(path.stat().st_size for path in paths) <= 5_000_000
    for i, path in enumerate(paths):
        assert path.name == f"{i}.js" and path.read_text(encoding="ascii").startswith("(self.mirlibMiniature??=[])")


# --- the same as in Python ---


def test_mir_is_that_of_the_library(asked, miniature):
    for kind, count in (("scenes", 4), ("photographs", 1)):  # the second has fewer rows than dimensions
        images, texts = list(pictures_of(kind, count, seed=4)), texts_of("news", count, seed=4)
        images = [image.resize((48, 48)) for image in images]
        rows = collect_rows(*miniature, images, texts)
        want = modality_integration_rate(rows.vision, rows.text)
        got = ask(asked, "measure", pictures=list(map(pixels, images)), texts=texts, settings=SETTINGS)
        assert got["value"] == pytest.approx(want.value, abs=1e-5)
        for layer, total, mean in zip(got["layers"], want.per_layer, want.mean_term, strict=True):
            assert layer["total"] == pytest.approx(total, rel=1e-4)
            assert layer["mean"] == pytest.approx(mean, rel=1e-4)


def test_gain_scales_what_the_projector_makes(asked, miniature):
    """The library's distance of the same vectors, with the projector's output layer scaled by hand."""
    model, processor = miniature
    images, texts = list(pictures_of("scenes", 3, seed=5)), texts_of("scenes", 3, seed=5)
    projector = model.model.multi_modal_projector
    handle = projector.register_forward_hook(lambda module, args, output: 2.5 * output)
    try:
        rows = collect_rows(model, processor, images, texts)
    finally:
        handle.remove()
    want = modality_integration_rate(rows.vision, rows.text).value
    given = {"pictures": list(map(pixels, images)), "texts": texts, "settings": {**SETTINGS, "gain": 2.5}}
    assert ask(asked, "measure", **given)["value"] == pytest.approx(want, abs=1e-5)


def test_points_are_the_rows_seen_along_the_plane(asked, miniature):
    images, texts = list(pictures_of("scenes", 2, seed=6)), texts_of("news", 2, seed=6)
    rows = collect_rows(*miniature, images, texts)
    planes = np.linalg.qr(np.random.default_rng(0).normal(size=(9, 128, 2)))[0].transpose(0, 2, 1)
    given = {"pictures": list(map(pixels, images)), "texts": texts, "settings": SETTINGS}
    got = ask(asked, "measure", **given, planes=planes.tolist())["points"]
    for k, (vision, text) in enumerate(
        zip([rows.vision_embeddings, *rows.vision], [rows.text_embeddings, *rows.text], strict=True)
    ):
        unit = text.double().norm(dim=1).mean()
        for name, of in (("vision", vision), ("text", text)):
            want = of.double() @ torch.from_numpy(planes[k]).T / unit
            assert np.allclose(got[k][name], want, atol=2e-4 * max(1, float(want.abs().max()))), (k, name)


def test_text_falls_into_the_same_tokens(asked, miniature):
    tokenizer = miniature[1].tokenizer
    texts = [
        *texts_of("code", 10),
        *texts_of("topics", 10),
        " what colour is the circle ?",
        "It's  a\ttab,\n\n two   lines — and ünïcödé 漢字 😀 12345!?",
        "",
    ]
    want = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert ask(asked, "tokenize", texts=texts) == want


def test_two_hundred_scenes_have_the_same_answers(asked, miniature):
    model, processor = miniature
    scenes = evaluation.held_out_scenes(200, seed=11)
    for number, scene in enumerate(scenes):
        kind = world.QUESTION_KINDS[number % len(world.QUESTION_KINDS)]
        questions = [q for q in live.questions_of(scene) if q.kind == kind] or live.questions_of(scene)
        question = questions[number % len(questions)]
        (reply,) = ask_pictures(model, processor.tokenizer, scene, [question])
        given = {"pixels": pixels(world.to_image(scene)), "question": question.text, "words": list(reply.words)}
        got = ask(asked, "answer", **given, settings=SETTINGS)
        assert got["likeliest"][0][0] == reply.said, question
        assert got["probabilities"] == pytest.approx(reply.probabilities, abs=2e-3), question


def test_captions_are_those_that_python_writes(asked, miniature):
    model, processor = miniature
    scenes = evaluation.held_out_scenes(6, seed=12)
    features = evaluation.train.vision_features(model, scenes)
    want = evaluation.write_captions(model, processor.tokenizer, features)
    got = [ask(asked, "caption", pixels=pixels(world.to_image(scene)), settings=SETTINGS) for scene in scenes]
    assert got == want


# --- the widget ---


ANSWER = "document.querySelector('.mirlib-guesses [role=status]')"
MIR = "Number(document.querySelector('td[data-name=mir]').dataset.value)"


def shown(page, name):
    return float(page.locator(f'td[data-name="{name}"]').first.get_attribute("data-value"))


def settled(page):
    page.wait_for_function(
        "() => document.querySelector('td[data-name=mir][data-value]') && "
        "document.querySelector('[aria-label=\"The model in the page\"]').ariaBusy === 'false'"
    )


def test_guesses_are_answered_by_what_the_model_does(opened):
    """Each comment under a guess says which is lower: it has to be true of the pictures on the page."""
    page = opened.page
    kept = "() => document.activeElement.matches('.mirlib-guesses button')"  # by a keyboard: its place
    for number, (button, lower) in enumerate([(0, 1), (1, 1), (0, 0)]):
        page.locator(".mirlib-guesses button").nth(button).press("Enter")
        answer = page.locator(".mirlib-guesses [role=status]")
        page.wait_for_function(
            "() => /^(Yes|No)/.test(document.querySelector('.mirlib-guesses [role=status]').textContent)"
        )
        assert answer.inner_text().startswith("Yes" if button == lower else "No"), number
        assert page.evaluate(kept)
        if number < 2:
            page.get_by_role("button", name="Next guess").press("Space")
            assert page.evaluate(kept)


def test_a_keyboard_moves_the_layers_and_the_input(opened):
    page = opened.page
    settled(page)
    before = shown(page, "distance")
    page.locator("input[name=layer]").first.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert shown(page, "distance") != before
    mir = shown(page, "mir")
    page.locator("select[name=input]").first.select_option("black")
    page.wait_for_function(f"() => {MIR} !== {mir}")
    assert shown(page, "mir") < mir
    page.get_by_label("The model in the page").first.get_by_role("button", name="Reset").click()
    page.wait_for_function(f"() => {MIR} === {mir}")


def test_a_drawn_scene_is_measured_and_zeros_are_said_to_be_no_nearer(opened, miniature):
    """MIR is that of the library for the six pictures that the page shows."""
    page = opened.page
    settled(page)
    untouched = shown(page, "mir")
    page.locator("select[name=input]").first.select_option("drawn")
    page.get_by_role("button", name="bottomright: empty").first.press("Enter")
    page.get_by_role("button", name="topleft: red circle").first.click()
    page.wait_for_timeout(200)
    settled(page)
    places = page.locator(".mirlib-board").first.get_by_role("button").evaluate_all("all => all.map(e => e.ariaLabel)")
    assert places == ["topleft: empty", "topright: empty", "bottomleft: empty", "bottomright: red circle"]
    sources = page.locator(".mirlib-strip").first.locator("img").evaluate_all("all => all.map(e => e.src)")
    images = [Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGB") for source in sources]
    rows = collect_rows(*miniature, images, texts_of("news", 6))
    want = modality_integration_rate(rows.vision, rows.text).value
    assert len(images) == 6 and shown(page, "mir") == pytest.approx(want, abs=1e-4)
    page.locator("input[name=gain]").first.fill("0")
    said = page.get_by_label("The model in the page").first.get_by_text("Zeros: MIR")
    said.wait_for()
    assert shown(page, "mir") > untouched and f"and {untouched:.2f} untouched" in said.inner_text()


def test_two_of_them_in_one_page_wait_for_each_other(tmp_path, visit):
    widget = TheModel({"scenes": pictures_of("scenes", 2)}, texts_of("news", 2)).static_html()
    engine.write_scripts(tmp_path / "_static")
    page = tmp_path / "two.html"
    page.write_text(f'<link rel="stylesheet" href="_static/book.css"><body>{widget}{widget}</body>', encoding="utf-8")
    (tmp_path / "_static" / "book.css").write_text("")
    seen = visit(page.as_uri())
    seen.page.wait_for_function(
        "() => [...document.querySelectorAll('td[data-name=mir]')].filter((e) => e.dataset.value).length === 2",
        timeout=120_000,
    )
    values = seen.page.locator("td[data-name=mir]").evaluate_all("all => all.map(e => e.dataset.value)")
    assert values[0] == values[1] and seen.errors == []


def test_the_clouds_of_the_engine_are_measured_exactly(asked):
    """Against the library on made-up rows, singular ones too, by the page's own function."""
    source = (engine.MINIATURE.parent / "widgets" / "engine.js").read_text(encoding="utf-8")
    take = "source => import(URL.createObjectURL(new Blob([source], {type: 'text/javascript'})))"
    asked.page.evaluate(f"source => ({take})(source).then(module => {{ self.engineModule = module }})", source)
    rng = np.random.default_rng(1)
    for n, m, d in ((50, 60, 8), (5, 40, 12), (3, 4, 16)):
        x, y = rng.normal(size=(n, d)).astype(np.float32), (2 * rng.normal(size=(m, d)) + 1).astype(np.float32)
        want = frechet_distance(torch.from_numpy(x), torch.from_numpy(y))
        got = asked.page.evaluate(
            "([x, y, d]) => self.engineModule.frechet(Float32Array.from(x), Float32Array.from(y), d)",
            [x.ravel().tolist(), y.ravel().tolist(), d],
        )
        assert got["mean"] == pytest.approx(want.mean_term, rel=1e-9)
        assert got["covariance"] == pytest.approx(want.covariance_term, rel=1e-6)
