"""The model in the page, in Chromium from disk: how soon it answers and measures, and how long the page stands still.

Needs the built book (`make book`). Times are those of the page's own clock; each repetition opens both pages anew.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.measuring import Measurement, Target, say

ROOT = Path(__file__).resolve().parents[1]
HTML = ROOT / "_build" / "html"
FIRST, ASK = "book/intro.html", "notebooks/06_mini_llava.html"
NEW_QUESTION, NEW_DRAWING = "answer to another question", "answer about a new drawing"
NEW_MIR = "hidden states and MIR of six new pictures"
FIRST_ANSWER, FIRST_MIR = "first answer, page opened cold", "first MIR, page opened cold"
WORKING, LOADING = (f"longest task of the main thread while the {what}" for what in ("model works", "page loads"))
TARGETS = {
    NEW_QUESTION: ("s", Target("≤", 1)),
    NEW_DRAWING: ("s", Target("≤", 1)),
    NEW_MIR: ("s", Target("≤", 2)),
    WORKING: ("ms", Target("≤", 50)),
    FIRST_ANSWER: ("s", None),
    FIRST_MIR: ("s", None),
    LOADING: ("ms", Target("≤", 50)),
}
WATCH = """window.tasks = [];
new PerformanceObserver((list) => tasks.push(...list.getEntries().map((one) => one.duration)))
  .observe({ type: "longtask", buffered: true });"""  # tasks of 50 ms and more; of shorter ones a browser does not tell
# Seconds from a change of a field until what hangs on it is another element, or has another value.
CHANGE = """([root, field, value, seen]) => new Promise((done) => {
  const widget = document.querySelector(root);
  const state = () => widget.querySelector(seen).dataset.value ?? widget.querySelector(seen);
  const [before, start] = [state(), performance.now()];
  const look = () => state() !== before && done((performance.now() - start) / 1000);
  new MutationObserver(look).observe(widget, { subtree: true, childList: true, attributes: true });
  const input = widget.querySelector(field);
  input.value = value;
  input.dispatchEvent(new Event("change", { bubbles: true }));
})"""
SEEN = """([root, seen]) => document.querySelector(`${root} ${seen}`) && performance.now() / 1000"""
HERO, MIR = '.mirlib-widget[aria-label="The model in the page"]', "td[data-value]"
DRAWN, SAID = ".mirlib-ask", "td[data-said]"


def measure(rounds: int) -> list[Measurement]:
    """The rows, of so many openings of two pages."""
    pages = [HTML / FIRST, HTML / ASK]
    if not all(page.exists() for page in pages):
        return [_missing(name, "no built book: make book") for name in TARGETS]
    from playwright.sync_api import sync_playwright

    sys.path.insert(0, str(ROOT / "tools"))
    from screenshots import find_chromium

    found: dict[str, list[float]] = defaultdict(list)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        except FileNotFoundError as error:
            return [_missing(name, str(error)) for name in TARGETS]
        for number in range(rounds):
            say(f"the model in the page: round {number + 1} of {rounds}")
            seen = [_visit(browser, page) for page in pages]
            for name in TARGETS:
                found[name].append(max(one[name] for one in seen if name in one))
        browser.close()
    size = f"Chromium {browser.version.split('.')[0]}, from disk"
    return [
        Measurement.of(name, size, found[name], unit=unit, target=target) for name, (unit, target) in TARGETS.items()
    ]


def _missing(name: str, why: str) -> Measurement:
    unit, target = TARGETS[name]
    return Measurement(name, "", None, unit=unit, target=target, missing=why)


def _visit(browser: Any, path: Path) -> dict[str, float]:
    """Open a page, let the model in it work, and tell what took how long; of two of a kind, the longer."""
    found = {}
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.add_init_script(WATCH)
    page.goto(path.as_uri(), wait_until="load")
    is_first = path.as_posix().endswith(FIRST)
    widget, seen = (HERO, MIR) if is_first else (DRAWN, SAID)
    page.locator(widget).scroll_into_view_if_needed()
    first = FIRST_MIR if is_first else FIRST_ANSWER
    found[first] = page.wait_for_function(SEEN, arg=[widget, seen]).json_value()
    page.wait_for_function(f"() => document.querySelector('{widget}').getAttribute('aria-busy') !== 'true'")
    page.wait_for_timeout(500)
    found[LOADING] = max(page.evaluate("tasks.splice(0)"), default=0)

    def change(field: str, value: str) -> float:
        taken = page.evaluate(CHANGE, [widget, f'select[name="{field}"]', value, seen])
        page.wait_for_timeout(500)
        return float(taken)

    if is_first:
        found[NEW_MIR] = max(change("input", "black"), change("input", "noise"))
    else:
        asked = page.locator(f'{widget} select[name="question"] option').all_text_contents()
        found[NEW_QUESTION] = change("question", asked[1])
        found[NEW_DRAWING] = change("colour", "green")
    found[WORKING] = max(page.evaluate("tasks"), default=0)
    context.close()
    return found
