"""Chapter 6 as a reader has it: a notebook server, a training that she watches, a picture that she draws, an answer."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("jupyterlab", reason="the notebook server comes with the extra 'book'")
pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
CHAPTER = "06_mini_llava.ipynb"

# The cells that the story needs, by a part of each. The build of the book runs the whole chapter.
STORY = (
    "from mirlab import ledger",
    "def count(module)",
    "student, _ = load_miniature()",
    "with live.LiveCurve(",
    "curve.measured.items()",
    "live.ask_the_model(",
)
# The way is tested here, not how far it leads.
SHORTER = {"StageOne(pairs=2048": "StageOne(pairs=512"}
PATIENCE = 300_000  # milliseconds, for what a kernel does on a busy machine


def story() -> dict:
    """The chapter with nothing but the cells of the story, and a shorter training."""
    notebook = json.loads((ROOT / "notebooks" / CHAPTER).read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    chosen = []
    for part in STORY:
        (cell,) = (cell for cell in code if part in "".join(cell["source"]))
        chosen.append(cell)
    for long, short in SHORTER.items():
        (cell,) = (cell for cell in chosen if long in "".join(cell["source"]))
        cell["source"] = "".join(cell["source"]).replace(long, short)
    return {**notebook, "cells": chosen}


@pytest.fixture
def server(tmp_path):
    """A fresh JupyterLab over the chapter, alone in its folder; its address."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / CHAPTER).write_text(json.dumps(story()), encoding="utf-8")
    settings = tmp_path / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    # A cell that is scrolled out of sight would be taken off the page, and the test could not read it.
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = {f"JUPYTER_{name}_DIR": str(tmp_path / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": tmp_path,
        "ServerApp.allow_root": True,
        "ServerApp.open_browser": False,
        "IdentityProvider.token": "",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())],
            env={**os.environ, **home, "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings")},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()[-3000:]
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()  # it takes its kernels along
        process.wait(timeout=60)


def run_all_cells(page, address):
    """Open the chapter and choose Run, Run All Cells."""
    page.goto(f"{address}/lab/tree/notebooks/{CHAPTER}?reset", wait_until="load")
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=PATIENCE)
    # Every picture that is shown from now on, however short a time.
    page.evaluate("""() => {
      window.pictures = new Set();
      const look = () => document.querySelectorAll('img[src^="data:image/png"]').forEach((i) => pictures.add(i.src));
      new MutationObserver(look).observe(document.body, { subtree: true, childList: true, attributes: true });
    }""")
    # Before the kernel is connected Lab drops the order, or asks which kernel is meant.
    started = "/[*\\d]/.test(document.querySelector('.jp-Notebook .jp-InputPrompt').textContent)"
    for _ in range(20):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.wait_for_timeout(3000)
        which = page.locator(".jp-Dialog .jp-mod-accept")
        if which.count():
            which.click()
            page.wait_for_timeout(3000)
        if page.evaluate(started):
            break
    page.wait_for_selector(".mirlib-ask fieldset", timeout=PATIENCE)


def answer(page, question, name="shipped"):
    """Choose a question and read what a model says to it, once it has seen the last picture."""
    page.locator('.mirlib-ask select[name="question"]').select_option(label=question)
    page.wait_for_function("!document.querySelector('.mirlib-ask').hasAttribute('aria-busy')", timeout=PATIENCE)
    return page.locator(f'.mirlib-ask [data-said="{name}"]').inner_text()


def draw(page, name, value):
    """Set one of the editor's controls."""
    control = page.locator(f'.mirlib-ask fieldset [name="{name}"]')
    if control.evaluate("e => e.tagName") == "SELECT":
        control.select_option(value)
    else:
        control.fill(value)


def test_a_reader_trains_watches_draws_and_is_answered(server, visit):
    page = visit().page
    page.set_default_timeout(PATIENCE)
    run_all_cells(page, server)

    assert page.evaluate("pictures.size") >= 2, "the curve grew while the training ran"
    rows = page.locator(".jp-OutputArea table.dataframe", has_text="zeroed").locator("tbody tr").all()
    (first_step, first_loss, first_mir, *_), *_, (last_step, last_loss, last_mir, *_) = (
        [float(text) for text in row.locator("th, td").all_inner_texts()] for row in rows
    )
    assert (first_step, last_step) == (1, 64)
    assert last_loss < first_loss / 2
    assert last_mir != first_mir

    for name, value in {"count": "1", "shape": "circle", "size": "large", "cell": "topleft"}.items():
        draw(page, name, value)
    for colour in ("blue", "yellow"):
        draw(page, "colour", colour)
        assert answer(page, "what colour is topleft ?") == f"{colour} (right)"
    picture = "document.querySelector('.mirlib-ask .mirlib-picture').toDataURL()"
    before = page.evaluate(picture)
    draw(page, "right", "1")
    draw(page, "background", "140")
    assert answer(page, "what colour is topleft ?") == "yellow (right)"
    assert page.evaluate(picture) != before
    assert page.locator('.mirlib-ask [data-said="yours"]').inner_text() != ""

    typed = page.locator('.mirlib-ask input[name="typed"]')
    typed.fill("how many yellow objects ?")
    typed.press("Enter")
    asked = page.locator('.mirlib-ask select[name="question"] option').first
    asked.filter(has_text="how many yellow objects ?").wait_for(state="attached", timeout=PATIENCE)

    # The page again, with the same kernel: it has sent the weights before, and the widget does not wait for them.
    page.keyboard.press("Control+s")
    page.wait_for_function("!document.querySelector('.lm-TabBar-tab.jp-mod-dirty')", timeout=PATIENCE)
    page.reload(wait_until="load")
    page.wait_for_selector(".mirlib-ask [data-said]", timeout=PATIENCE)
    assert answer(page, "what colour is topleft ?") == "yellow (right)"
