"""Draw the pictures of README.md: the first page's model at work, and what patches cost.

    python tools/readme_picture.py [HTML]     HTML: the folder of the built book, as `make book` leaves it

`make readme-picture` calls this. It writes readme.gif and readme_map.png into book/_static. The first is filmed in
Chromium while somebody guesses, sees the answers, changes what goes in and moves through the layers; the second has the
pairs of `mir score`.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import Page, sync_playwright  # noqa: E402
from screenshots import HTML, find_chromium  # noqa: E402

from mirlib import transport_map  # noqa: E402
from mirlib.costs import as_seen  # noqa: E402
from mirlib.data import sample_images, sample_texts  # noqa: E402
from mirlib.loading import load_miniature  # noqa: E402
from mirlib.plots import figure_transport_map, style  # noqa: E402

FOLDER = Path(__file__).resolve().parents[1] / "book" / "_static"
WINDOW = {"width": 1460, "height": 1100}  # of it the widget takes about what README has on a screen
SAMPLES = 100

WIDGET = '[aria-label="The model in the page"]'
POINTER = """() => {
  const pointer = document.createElement("div");
  pointer.id = "pointer";
  pointer.style = "position: fixed; z-index: 9999; pointer-events: none; left: -50px; top: 0";
  pointer.innerHTML = '<svg width="20" height="28" style="background: none"><path d="M2 2v20l5-4 4 8 3-1-4-8h7z" ' +
    'fill="#111" stroke="#fff" stroke-width="1.5"/></svg>';
  document.querySelector(".mirlib-guesses").style.minHeight = "9.6rem"; // room for an answer, so that nothing jumps
  document.querySelector('WIDGET').append(pointer);
}""".replace("WIDGET", WIDGET)
SETTLED = f"""() => document.querySelector('td[data-name=mir][data-value]')
  && document.querySelector('{WIDGET}').ariaBusy === 'false'"""
ANSWERED = "() => /^(Yes|No)/.test(document.querySelector('.mirlib-guesses [role=status]').textContent)"


class Film:
    """Pictures of the widget on an open page, each with the milliseconds that it is shown.

    Args:
        page: The open page.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.widget = page.locator(WIDGET)
        self.frames: list[tuple[Image.Image, int]] = []
        page.set_default_timeout(240_000)
        page.wait_for_function(SETTLED)
        page.evaluate("document.fonts.ready")
        page.evaluate(POINTER)
        self.widget.scroll_into_view_if_needed()

    def keep(self, milliseconds: int) -> None:
        """Take a picture as soon as the model has answered."""
        self.page.wait_for_function(SETTLED)
        taken = Image.open(io.BytesIO(self.widget.screenshot(caret="initial"))).convert("RGB")
        self.frames.append((taken, milliseconds))

    def point(self, name: str) -> None:
        """Lead the pointer onto a button."""
        box = self.page.get_by_role("button", name=name).bounding_box()
        x, y = box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"]
        self.page.evaluate(f"pointer.style.left = '{x}px'; pointer.style.top = '{y}px'")
        self.keep(900)

    def click(self, name: str) -> None:
        """Lead the pointer onto a button and press it."""
        self.point(name)
        self.page.get_by_role("button", name=name).click()

    def guess(self, name: str) -> None:
        """Press the button of a guess and look at the answer."""
        self.click(name)
        self.page.wait_for_function(ANSWERED)
        self.keep(4500)


def film(page: Page) -> list[tuple[Image.Image, int]]:
    """Two guesses, noise, and a walk through the layers."""
    shown = Film(page)
    shown.keep(2500)
    shown.guess("The projector that was trained")
    shown.click("Next guess")
    shown.keep(2000)
    shown.guess("Scenes, of which it can speak")
    page.evaluate("pointer.style.left = '-50px'")
    page.get_by_label("What goes in").select_option("noise")
    shown.keep(2500)
    page.get_by_role("button", name="Reset").click()
    shown.keep(1500)
    layer = page.locator("input[name=layer]")
    layer.focus()
    for k in range(2, 9):
        page.keyboard.press("ArrowRight")
        shown.keep(500 if k < 8 else 2500)
    return shown.frames


def hero(html: Path) -> list[tuple[Image.Image, int]]:
    """Open the first page of a built book and film its model.

    Raises:
        FileNotFoundError: The book is not built, or there is no Chromium.
    """
    path = html / "book" / "intro.html"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `make book` first.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport=WINDOW, color_scheme="light")
        page.goto(path.resolve().as_uri())
        frames = film(page)
        browser.close()
    return frames


def write_gif(frames: list[tuple[Image.Image, int]], path: Path) -> None:
    """Write an animation that never ends, all frames in the same few colours so that what rests does not flicker."""
    pictures, durations = zip(*frames, strict=True)
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width, height * len(pictures)))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (0, number * height))
    sheet = sheet.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # keeps rare colours
    first, *rest = (sheet.crop((0, n * height, width, (n + 1) * height)) for n in range(len(pictures)))
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)


def costs() -> Figure:
    """What the patches of the dearest and the cheapest pictures cost; the figure of ``mir score --map``."""
    model, processor = load_miniature()
    images = sample_images(SAMPLES)
    found = transport_map(model, processor, images, sample_texts(SAMPLES), num=SAMPLES, progress=False)
    ranked = [int(number) for number in found.ranking()]
    seen = {number: as_seen(processor, images[found.images[number]]) for number in ranked[:3] + ranked[-3:]}
    return figure_transport_map(found, seen).figure


def main(arguments: list[str]) -> None:
    """Film, measure, draw, write."""
    write_gif(hero(Path(arguments[0]) if arguments else HTML), FOLDER / "readme.gif")
    with style():
        stream = io.BytesIO()
        costs().savefig(stream, dpi=110)
        Image.open(stream).convert("RGB").quantize(256).save(FOLDER / "readme_map.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
