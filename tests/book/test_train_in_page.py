"""Stage 1 in the page: its slopes and its steps are those of PyTorch, and a reader can run it by keyboard."""

import numpy as np
import pytest
import torch
from widget_pages import write_page

from mirlab import live, world
from mirlab.model import connectors, train
from mirlab.recipes import Schedule
from mirlab.world import language
from mirlib.loading import load_miniature
from mirlib.widgets import engine
from mirlib.widgets.base import _read

pytestmark = pytest.mark.browser

STEPS, BATCH, RATE, WARMUP = 5, 4, 0.008, 2

SOURCE = "".join(map(_read, ("engine.js", "engine_training.js", "scenes.js", "engine_worker.js")))
SOURCE += "\nexport { generator, unpack, zerosLike };"

MODULE = """async source => {
  await self.mirlibEngine.load(() => {});
  self.training = await import(URL.createObjectURL(new Blob([source], {type: 'text/javascript'})));
  self.miniature = await self.training.unpack(self.mirlibMiniature);
}"""
TRAIN = """({pictures, captions, start, batch, rate, warmup}) => {
  const t = self.training;
  const weights = () => Object.fromEntries(Object.entries(start).map(([name, x]) => [name, Float32Array.from(x)]));
  const pairs = pictures.map((pixels, i) =>
    ({ features: self.miniature.encode(Uint8Array.from(pixels)), ids: t.captionIds(self.miniature, captions[i]) }));
  const slopes = t.zerosLike(weights());
  const count = pairs.slice(0, batch).reduce((sum, { ids }) => sum + ids.length - 1, 0);
  for (const { features, ids } of pairs.slice(0, batch)) {
    t.captionLoss(self.miniature, weights(), features, ids, slopes, count);
  }
  const adam = new t.Adam(weights());
  const steps = pairs.length / batch;
  const losses = [];
  for (let step = 0; step < steps; step += 1) {
    const chosen = pairs.slice(step * batch, (step + 1) * batch);
    losses.push(t.trainingStep(self.miniature, adam, chosen, rate * t.rateShare(step, steps, warmup)));
  }
  const lists = (of) => Object.fromEntries(Object.entries(of).map(([name, x]) => [name, [...x]]));
  return { losses, slopes: lists(slopes), after: lists(adam.weights) };
}"""
SCENES = """([source, world]) => import(URL.createObjectURL(new Blob([source], {type: 'text/javascript'}))).then(m => {
  const { uniform } = m.generator(5);
  const scenes = Array.from({ length: 2000 }, () => m.sampleScene(uniform, world));
  return scenes.map((scene) => ({ ...scene, caption: m.captionOf(scene.things) }));
})"""


@pytest.fixture
def opened(tmp_path, visit):
    """A page with a training short enough for a test, from disk."""
    engine.write_scripts(tmp_path / "_static")
    (tmp_path / "_static" / "book.css").write_text("")
    head = '<link rel="stylesheet" href="_static/book.css">'
    widget = live.train_in_page(pictures=2, steps=20, batch=4, every=10)
    seen = visit(write_page(widget, tmp_path, head))
    seen.page.set_default_timeout(300_000)
    yield seen.page
    assert seen.errors == [] and seen.foreign == []


def test_slopes_and_steps_are_those_of_pytorch(opened):
    model, processor = load_miniature()
    scenes = [world.sample_scene(np.random.default_rng([0, 31, i])) for i in range(STEPS * BATCH)]
    connectors.replace(model, "mlp2", seed=0)
    encode = language.segment_encoder(processor.tokenizer)
    with torch.no_grad():
        features = train.encoded(model, scenes)
    projector = model.model.multi_modal_projector
    model.requires_grad_(False)
    projector.requires_grad_(True)

    def values(of):
        return {f"multi_modal_projector.{name}": x.detach().flatten().tolist() for name, x in of}

    def loss_of_step(step):
        chosen = slice(step * BATCH, (step + 1) * BATCH)
        return train.caption_losses(model, train.caption_rows(scenes[chosen], encode), features[chosen])[0].mean()

    start = values(projector.named_parameters())
    loss_of_step(0).backward()
    slopes = values((name, p.grad) for name, p in projector.named_parameters())
    schedule = Schedule(STEPS, RATE, warmup_steps=WARMUP, weight_decay=0.0)
    want = train.fit(model, loss_of_step, schedule, progress=False)

    opened.evaluate(MODULE, SOURCE)
    given = {"pictures": [world.render(scene).ravel().tolist() for scene in scenes], "start": start, "batch": BATCH}
    given |= {"captions": list(map(world.caption, scenes)), "rate": RATE, "warmup": WARMUP}
    got = opened.evaluate(TRAIN, given)

    assert got["losses"][0] == pytest.approx(want.losses[0], abs=1e-5)
    assert got["losses"] == pytest.approx(want.losses, abs=1e-4)
    after = values(projector.named_parameters())
    for name, slope in slopes.items():
        away = np.linalg.norm(np.subtract(got["slopes"][name], slope)) / np.linalg.norm(slope)
        assert away < 1e-4, name
        moved = np.linalg.norm(np.subtract(after[name], start[name]))
        assert np.linalg.norm(np.subtract(got["after"][name], after[name])) < 1e-3 * moved, name


def number(page, name):
    return float(page.locator(f'.mirlib-train td[data-name="{name}"]').inner_text().split()[-1].replace("−", "-"))


def settled(page):
    page.wait_for_function("() => document.querySelector('.mirlib-train').ariaBusy === 'false'")


def test_a_keyboard_trains_and_the_run_before_stays(opened):
    page = opened
    button = page.locator(".mirlib-train button")
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.mirlib-train td[data-name=steps]').textContent === '8'")
    first = number(page, "loss")
    settled(page)
    assert number(page, "steps") == 20
    assert number(page, "loss") < 0.7 * first
    start, now = page.locator('.mirlib-train td[data-name="mir"]').inner_text().split(" → ")
    assert abs(float(now) - float(start)) > 0.1
    assert page.locator('.mirlib-train td[data-name="caption"]').inner_text().count(" .") >= 1
    page.wait_for_function("() => /step 20 of 20.*MIR/.test(document.querySelector('.mirlib-spoken').textContent)")

    page.locator(".mirlib-train input[name=learning_rate]").focus()
    page.keyboard.press("ArrowRight")
    page.locator(".mirlib-train input[name=warmup_steps]").focus()
    page.keyboard.press("End")
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('.mirlib-train path[data-run=now]').length === 2")
    page.keyboard.press("Enter")  # the same button stops it
    settled(page)
    assert number(page, "steps") < 20
    assert (number(page, "rate"), number(page, "rate-before")) == (0.016, 0.008)
    assert (number(page, "warmup"), number(page, "warmup-before")) == (32, 2)
    assert number(page, "steps-before") == 20
    assert page.locator(".mirlib-train path[data-run=before]").count() == 2


def test_a_scene_is_one_that_python_could_have_drawn(opened):
    """And many of them use all words of the world evenly."""
    shown = {"shapes": list(world.SHAPES), "sizes": world.SIZES, "colours": dict.fromkeys(world.COLOURS, [0, 0, 0])}
    scenes = opened.evaluate(SCENES, [SOURCE, shown])
    things = [thing for scene in scenes for thing in world.parse_caption(scene["caption"])]
    assert len(things) == sum(len(scene["things"]) for scene in scenes)
    vocabularies = (world.CELLS, world.SHAPES, world.SIZES, world.COLOURS)
    for said, words in zip(zip(*things, strict=True), vocabularies, strict=True):
        shares = np.array([said.count(word) for word in words]) / len(said)
        assert np.abs(shares * len(words) - 1).max() < 0.1
    for scene in scenes:
        cells = [world.CELLS.index(thing["cell"]) for thing in scene["things"]]
        assert cells == sorted(set(cells)) and 1 <= len(cells) <= 4
        assert 70 <= scene["background"] < 150
        for thing in scene["things"]:
            assert max(abs(thing["right"]), abs(thing["down"])) + world.SIZES[thing["size"]] < 12
