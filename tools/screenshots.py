"""Shoot every built page, wide and phone-sized, light and dark, to look at.

    python tools/screenshots.py FOLDER [PAGE …]     PAGE: part of a page's path, for example 02_frechet

Needs a built book (`make book`) and Chromium; the environment variable CHROMIUM names another browser binary.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

HTML = Path(__file__).resolve().parents[1] / "_build" / "html"
WIDTHS = {"wide": 1400, "phone": 390}
TALLEST = 12000  # pixels; Chromium's limit for one picture is 16384
LAID_OUT = "!document.querySelector('script[src*=\"in_pieces\"]') || 'whole' in document.documentElement.dataset"
"""Whether in_pieces.js, where a page has it, has come to the end of the page."""


def find_chromium() -> str:
    """Return the path of the system's Chromium or Chrome.

    Raises:
        FileNotFoundError: If there is none.
    """
    names = [os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
    for name in filter(None, names):
        if path := shutil.which(name):
            return path
    raise FileNotFoundError("No Chromium was found: install the package chromium, or set CHROMIUM to its path.")


def shoot(folder: Path, wanted: list[str]) -> int:
    """Write PAGE-WIDTH-THEME.png for every page into the folder, and return how many there are."""
    pages = [p for d in ("book", "notebooks") for p in sorted((HTML / d).glob("*.html"))]
    pages = [p for p in pages if not wanted or any(w in p.as_posix() for w in wanted)]
    if not pages:
        raise FileNotFoundError(f"No built page in {HTML} fits; run `make book` first.")
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        for size, width in WIDTHS.items():
            for theme in ("light", "dark"):
                context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
                # The theme keeps the reader's choice under these two names.
                context.add_init_script(
                    f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')"
                )
                page = context.new_page()
                for path in pages:
                    page.goto(path.as_uri(), wait_until="load")
                    page.wait_for_function(LAID_OUT)
                    page.wait_for_function(
                        "window.MathJax?.startup?.promise ? MathJax.startup.promise.then(() => true) : true"
                    )
                    height = min(TALLEST, page.evaluate("document.documentElement.scrollHeight"))
                    page.set_viewport_size({"width": width, "height": max(900, height)})
                    page.screenshot(path=folder / f"{path.stem}-{size}-{theme}.png")
                    page.set_viewport_size({"width": width, "height": 900})
                    count += 1
                context.close()
        browser.close()
    return count


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("pages", nargs="*")
    options = parser.parse_args()
    print(f"{shoot(options.folder, options.pages)} screenshots in {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
