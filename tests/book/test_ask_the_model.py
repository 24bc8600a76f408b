"""The widget that is asked about pictures, in a browser: from the gallery alone, and with somebody who answers."""

import json

import pytest

from mirlib.widgets import AskTheModel

pytestmark = pytest.mark.browser

PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
CHOICES = {
    "shape": ["circle", "square"],
    "digit": ["0", "1"],
    "colour": ["red", "blue"],
    "size": ["small", "large"],
    "cell": ["topleft", "topright", "bottomleft", "bottomright"],
    "slack": {"small": 5, "large": 1},
}


def card(colour, cell="topleft", share=0.75):
    """A card of one circle."""
    other = "blue" if colour == "red" else "red"
    return {
        "things": [{"shape": "circle", "colour": colour, "size": "small", "cell": cell, "right": 3, "down": 0}],
        "background": 100,
        "picture": PIXEL,
        "caption": f"{cell} circle small {colour} .",
        "questions": [
            {"kind": "count", "text": "how many objects ?", "answer": "one", "words": ["one", "two"]},
            {"kind": "colour", "text": "what colour is the circle ?", "answer": colour, "words": [colour, other]},
        ],
        "models": {
            "A": {"caption": "a", "said": ["one", colour], "probabilities": [[1, 0], [share, 0.25]]},
            "B": {"caption": "", "said": ["two", other], "probabilities": [[0, 1], [0.125, 0.5]]},
        },
    }


WIDGET = {"gallery": [card("red"), card("blue", share=0.5)], "names": ["A", "B"], "choices": CHOICES}

HARNESS = """<!doctype html><script type="module">
const listeners = {};
window.asked = [];
const model = {
  state: STATE,
  get(name) { return this.state[name]; },
  set(name, value) { this.state[name] = value; },
  on(event, listener) { (listeners[event] ??= []).push(listener); },
  off() {},
  save_changes() { window.asked.push(JSON.parse(JSON.stringify(this.state))); },
};
window.answer = (card) => {
  model.state.reply = { number: model.state.request, ...card };
  for (const listener of listeners["change:reply"]) listener();
};
const widget = await import(URL.createObjectURL(new Blob([SOURCE], { type: "text/javascript" })));
widget.default.render({ model, el: document.body });
</script>"""


def shown(page, word, model):
    return float(page.locator(f'[data-word="{word}"][data-model="{model}"]').get_attribute("data-value"))


def test_the_gallery_answers_without_a_kernel(visit, tmp_path):
    path = tmp_path / "static.html"
    path.write_text(f"<!doctype html><meta charset=utf-8>{AskTheModel(**WIDGET).static_html()}", encoding="utf-8")
    seen = visit(path.as_uri())
    page = seen.page
    page.locator('select[name="question"]').select_option(label="what colour is the circle ?")
    assert (shown(page, "red", "A"), shown(page, "red", "B"), shown(page, "blue", "B")) == (0.75, 0.125, 0.5)
    assert page.locator('[data-said="A"]').inner_text() == "red (right)"
    assert page.locator('[data-said="B"]').inner_text() == "blue (wrong)"
    page.locator('[data-card="1"]').focus()
    page.keyboard.press("Enter")
    assert shown(page, "blue", "A") == 0.5, "the question stays when the picture changes"
    assert page.locator('[data-caption="the truth"]').inner_text() == "topleft circle small blue ."
    assert page.locator('[data-caption="B"]').inner_text() == "(nothing)"
    page.wait_for_function("document.querySelector('[aria-live]').textContent.includes('B says red. The truth: blue.')")
    assert page.locator("fieldset").count() == 0, "nothing that needs a kernel is offered"
    assert seen.errors == []
    assert seen.foreign == []


def test_the_editor_sends_what_its_controls_say_one_request_at_a_time(visit, tmp_path):
    widget = AskTheModel(answer=lambda *_: {}, **WIDGET)
    state = {name: getattr(widget, name) for name in widget.state()}
    path = tmp_path / "live.html"
    source = json.dumps(widget._esm).replace("<", "\\u003c")
    path.write_text(HARNESS.replace("STATE", json.dumps(state)).replace("SOURCE", source), encoding="utf-8")
    seen = visit(path.as_uri())
    page = seen.page
    page.locator('select[name="colour"]').select_option("blue")
    page.locator('select[name="size"]').select_option("large")  # while the first request is under way
    page.locator('select[name="cell"]').select_option("bottomright")
    assert len(page.evaluate("asked")) == 1
    assert page.evaluate("asked[0].things") == [{**card("blue")["things"][0]}]
    page.evaluate("card => answer(card)", card("blue"))
    asked = page.evaluate("asked")
    assert len(asked) == 2, "what changed meanwhile is asked at once, and only once"
    (thing,) = asked[1]["things"]
    assert (thing["size"], thing["cell"], thing["right"]) == ("large", "bottomright", 1), "a large thing moves less"
    page.evaluate("card => answer(card)", card("blue", cell="bottomright"))
    assert page.locator('[data-caption="the truth"]').inner_text() == "bottomright circle small blue ."

    page.locator('input[name="count"]').fill("4")
    things = page.evaluate("asked.at(-1).things")
    assert sorted(thing["cell"] for thing in things) == sorted(CHOICES["cell"]), "things never share a cell"
    page.evaluate("answer({ error: 'it cannot be' })")
    assert page.locator('[role="alert"]').inner_text() == "it cannot be"

    page.locator('input[name="typed"]').fill("is it raining ?")
    page.keyboard.press("Enter")
    assert page.evaluate("asked.at(-1).typed") == "is it raining ?"
    assert seen.errors == []
