"""The built pages, in a browser: self-contained, whole, readable on a phone, and as axe-core would have them."""

import os
import re
from pathlib import Path

import pytest

import mirlib

pytestmark = pytest.mark.browser

EQUATIONS_READY = "() => window.MathJax?.startup?.promise?.then(() => true) ?? false"
MEASURE = Path(__file__).with_name("measure_layout.js").read_text(encoding="utf-8")
HEAVIEST = 1_500_000  # bytes
AXE = """async ([runOnly, rules]) => {
  const { violations } = await axe.run({ runOnly, rules, resultTypes: ["violations"], preload: false });
  return violations
    .filter((one) => ["serious", "critical"].includes(one.impact))
    .flatMap((one) => one.nodes.map((node) => `${one.id}: ${node.html.slice(0, 120)}: ${node.any[0]?.message ?? ""}`));
}"""
STANDARDS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
COLOURS, SIZES = ["color-contrast"], ["target-size", "scrollable-region-focusable"]
"""Rules whose answer another theme can change, or another width."""
# What is alike is looked at once, or axe takes minutes: of neighbouring descriptions of the library the first, and of
# words in one style some. The glyphs of formulas are hidden from a reader of the screen, and are no text.
FEWER_ELEMENTS = """() => {
  for (const one of document.querySelectorAll("dl.py ~ dl.py, mjx-math")) one.remove();
  const seen = new Set();
  for (const one of document.querySelectorAll(".highlight span[class]")) {
    if (seen.has(one.className)) one.replaceWith(one.textContent);
    else seen.add(one.className);
  }
}"""
FEWER_WORDS = """() => {
  const styles = new Map();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    let style = String(walk.currentNode.parentElement.checkVisibility());
    for (let e = walk.currentNode.parentElement; e; e = e.parentElement)
      style += ` ${e.localName}.${e.getAttribute("class")}.${e.getAttribute("style")}`;
    styles.set(walk.currentNode, style.replace(/\\d+/g, ""));  // the cells of a table are numbered
  }
  const seen = new Set();
  for (const [words, style] of styles) {
    if (seen.has(style)) words.remove();
    else if (words.data.trim()) seen.add(style);
  }
}"""
SCROLLS_BY_KEY = """() => [...document.querySelectorAll("pre, .cell_output > .output, .pst-scrollable-table-container")]
  .every((e) => e.tabIndex === (e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight ? 0 : -1))"""
LABELS = """() => [...document.querySelectorAll(".mirlib-widget :is(select, input)")]
  .filter((e) => e.labels.length !== 1 && !e.ariaLabel).map((e) => `no label, or two: ${e.outerHTML.slice(0, 80)}`)"""
IMAGES = """() => [...document.images].map(i => [i.src.split('/').pop(), i.naturalWidth])"""


def test_the_whole_book_stands_in_the_build(site):
    if not site.is_whole:
        pytest.skip("ONLY A SAMPLE PAGE WAS TESTED: run `make book` first to test every page of the book.")
    names = {page.stem for page in site.pages}
    assert {"intro", "api", "glossary", "01_modality_gap", "05_mir_on_llava"} <= names


def gaps(seen, path, *, equations=True):
    """What an open page lacks, asks of another host, or fails at."""
    html = path.read_text(encoding="utf-8")
    if equations and 'class="math' in html:
        seen.page.wait_for_function(EQUATIONS_READY)
        if count := seen.page.locator(".math:not(:has(mjx-container))").count():
            yield f"{count} equations are not set"
        yield from (f"equation: {text}" for text in seen.page.locator("mjx-merror").all_text_contents())
    yield from (f"picture {name} is not shown" for name, width in seen.page.evaluate(IMAGES) if width == 0)
    if mounts := html.count('class="mirlib-mount"'):
        seen.page.wait_for_function("n => document.querySelectorAll('.mirlib-widget').length === n", arg=mounts)
    yield from seen.page.evaluate(LABELS)
    yield from (f"asks {url}" for url in seen.foreign)
    yield from map(str, seen.errors)


def test_every_page_is_whole_and_asks_no_other_host_from_disk(site, visit):
    """The script that sets equations is one file for all pages: from disk, one page shows that it is found."""
    seen = visit()
    problems = []
    first = next((path for path in site.pages if 'class="math' in path.read_text(encoding="utf-8")), None)
    for path in site.pages:
        seen.go(path.as_uri())
        problems += [f"{path.stem}: {gap}" for gap in gaps(seen, path, equations=path == first)]
    assert not problems, "\n".join(problems)


def test_a_request_to_another_host_is_stopped_and_seen(visit, served):
    seen = visit(f"{served}/book/glossary.html")
    for address in ("https://example.org/x.png", "http://127.0.0.1.example.org/y.png", f"{served}/_static/logo.svg"):
        seen.page.evaluate("address => fetch(address, { mode: 'no-cors' }).catch(() => {})", address)
    assert seen.foreign == ["https://example.org/x.png", "http://127.0.0.1.example.org/y.png"]


def test_pages_bring_of_others_what_they_show(site, visit):
    """tools/light_pages.py: MathJax only where a formula is, and of the theme's icons those that a page names."""
    for path in site.pages:
        html = path.read_text(encoding="utf-8")
        assert ("mathjax" in html.lower().split("</head>")[0]) == ('class="math' in html), path.stem
    icons = site.folder / "_static" / "scripts" / "fontawesome.js"
    assert icons.stat().st_size < 150_000
    seen = visit(site.pages[0].as_uri())
    seen.page.wait_for_function("() => !document.querySelector('i[class*=fa-]')")
    assert seen.page.locator("svg.svg-inline--fa").count()
    assert not seen.page.locator("svg.svg-inline--fa .missing").count(), "the sign for an icon that is not there"
    font = "getComputedStyle(document.documentElement).getPropertyValue('--fa-font-solid')"
    assert "Free" in seen.page.evaluate(font), "the font of the icons in boxes"


@pytest.fixture(scope="module")
def axe():
    """The script. It comes in a package, so that no page and no test loads it from another host."""
    try:
        from axe_playwright_python.base import AXE_SCRIPT
    except ImportError:
        if os.environ.get("MIRLIB_REQUIRE_BROWSER"):
            pytest.fail("the package axe-playwright-python of the extra 'test' is missing")
        pytest.skip("THE LAYOUT AND ACCESSIBILITY OF THE PAGES WERE NOT TESTED: install the extra 'test'.")
    return AXE_SCRIPT


def show(seen, width=None, theme=None):
    if width:
        seen.page.set_viewport_size({"width": width, "height": 900})
    if theme:
        seen.page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)


def misfits(seen, wide):
    """What `measure_layout.js` finds in the light theme and in the dark one."""
    for theme in ("dark", "light"):
        show(seen, theme=theme)
        for fault in seen.page.evaluate(MEASURE, wide):
            yield f"{seen.page.viewport_size['width']} px, {theme}: {fault}"


def barriers(seen, axe):
    """What axe finds serious or critical on an open page of 390 px in the light theme. It leaves a ruin of the page."""

    def found(kind, values, **rules):
        faults = seen.page.evaluate(AXE, [{"type": kind, "values": values}, rules])
        theme = seen.page.evaluate("document.documentElement.dataset.theme")
        return [f"{seen.page.viewport_size['width']} px, {theme}: {fault}" for fault in faults]

    seen.page.evaluate(axe)
    seen.page.evaluate(FEWER_ELEMENTS)
    seen.page.wait_for_function(SCROLLS_BY_KEY)  # the theme looks after a while which boxes scroll now
    yield from found("rule", SIZES)
    show(seen, width=1280)
    seen.page.wait_for_function(SCROLLS_BY_KEY)
    yield from found("tag", STANDARDS, **{rule: {"enabled": False} for rule in COLOURS})
    seen.page.add_style_tag(content="* { transition: none !important }")  # colours fade
    seen.page.evaluate(FEWER_WORDS)
    for theme in ("light", "dark"):
        show(seen, theme=theme)
        yield from found("rule", COLOURS)


def test_over_http_every_page_is_whole_fits_and_is_open_to_all(site, served, visit, axe):
    """On a laptop nothing scrolls sideways; on a phone wide things may, within themselves, and the page may not."""
    problems = []
    seen = visit(width=1280)
    for path in site.pages:
        show(seen, width=1280)
        seen.go(f"{served}/{path.relative_to(site.folder).as_posix()}")
        found = [*gaps(seen, path), *misfits(seen, True)]
        show(seen, width=360)
        if (width := seen.page.evaluate("document.documentElement.scrollWidth")) > 360:
            found.append(f"the page is {width} px wide on a phone of 360")
        show(seen, width=390)
        found += [*misfits(seen, False), *barriers(seen, axe)]
        problems += [f"{path.stem}, {fault}" for fault in found]
    assert not problems, "\n".join(problems)


def test_axe_sees_a_button_without_a_name_small_targets_and_pale_words(visit, axe):
    seen = visit(width=390)
    button = '<button style="width: 9px; height: 9px; padding: 0; margin: 0">x</button>'
    seen.page.set_content(
        '<!doctype html><html lang="en" data-theme="light"><title>x</title><style>[data-theme=dark] { --pale: #ccc }'
        f"</style><main><h1>x</h1><button></button><p>{button}{button}</p>"
        '<p style="color: var(--pale, black); background: white">pale</p></main></html>'
    )
    found = list(barriers(seen, axe))
    assert any(one.startswith("390 px, light: target-size") for one in found)
    assert any(one.startswith("1280 px, light: button-name") for one in found)
    assert [one[:30] for one in found if "color-contrast" in one] == ["1280 px, dark: color-contrast: "[:30]]


def test_no_page_is_heavy(site):
    """A page with all that it embeds; the pictures beside it are counted with it."""
    weights = {}
    for path in site.pages:
        html = path.read_text(encoding="utf-8")
        pictures = {path.parent / name for name in re.findall(r'<img[^>]* src="([^":]+)"', html)}
        weights[path.stem] = sum(each.stat().st_size for each in {path, *pictures})
        assert "widget-state+json" not in html, f"{path.stem}: the state of its widgets a second time"
    assert {name: weight for name, weight in weights.items() if weight > HEAVIEST} == {}


FAULTY = """<article>
<pre style="width: 20em; overflow-x: auto">{long}</pre>
<div style="overflow-x: auto"><table><tr><td style="min-width: 1500px">wide table</td></tr></table></div>
<div style="overflow-x: hidden"><table><tr><td style="min-width: 1600px">cut table</td></tr></table></div>
<div class="math" style="overflow-x: auto"><p style="width: 1700px">wide equation</p></div>
<details><summary>more</summary><pre style="width: 20em; overflow-x: hidden">folded away {long}</pre></details>
<img src="data:," alt=""><img src="data:," alt="picture.png">
<style>.admonition-title::after {{ content: "\uf303" }}</style><p class="admonition-title">exercise</p>
<p>&lt;IPython.core.display.Markdown object&gt; and 60.09201993299985, but 3.14159 may stand</p>
</article>"""


def test_the_measure_of_the_layout_sees_what_it_is_for(visit):
    seen = visit(width=1280)
    page = f"<!doctype html><html><body>{FAULTY.format(long='word ' * 40)}</body></html>"
    seen.page.set_content(page)
    found = list(misfits(seen, True))
    assert len(found) % 2 == 0 and len(found) // 2 == 12
    for words in (
        "folded away",
        "wide table",
        "cut table",
        "wide equation",
        "IPython",
        "60.092",
        "no words",
        "empty box",
    ):
        assert any(words in fault for fault in found), words
    seen.page.set_viewport_size({"width": 390, "height": 900})
    found = " ".join(misfits(seen, False))
    assert "cut table" in found and "folded away" in found
    assert "wide table" not in found and "wide equation" not in found


def test_a_dark_page_is_printed_on_white(site, visit):
    seen = visit(site.pages[0].as_uri())
    show(seen, theme="dark")
    theme = "document.documentElement.dataset.theme"
    seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert seen.page.evaluate(theme) == "light"
    seen.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert seen.page.evaluate(theme) == "dark"


def test_a_page_is_laid_out_in_pieces_and_an_anchor_is_where_it_should_be(site, visit):
    path = max(site.pages, key=lambda page: page.read_text(encoding="utf-8").count('class="math'))
    skipped = """([value]) => [...document.querySelectorAll(".bd-article section section")]
      .filter((e) => getComputedStyle(e).contentVisibility === value).length"""
    seen = visit()
    seen.page.add_init_script(
        f"addEventListener('DOMContentLoaded', () => (window.atFirst = ({skipped})(['auto'])), {{ once: true }})"
    )
    seen.go(path.as_uri())
    units = seen.page.locator(".bd-article > section > section")
    assert seen.page.evaluate("atFirst") >= units.count() > 1
    assert seen.page.evaluate(skipped, ["auto"]) == 0
    name = units.nth(units.count() // 2).get_attribute("id")
    jumped = visit(f"{path.as_uri()}#{name}").page
    jumped.wait_for_function(EQUATIONS_READY)
    assert abs(jumped.locator(f"section[id='{name}']").bounding_box()["y"]) < 150
    jumped.mouse.move(300, 400)
    jumped.mouse.wheel(0, -1500)
    jumped.wait_for_timeout(500)
    left = jumped.evaluate("scrollY")
    jumped.reload()  # the reader has moved on: the anchor is no longer where to go
    jumped.wait_for_function(EQUATIONS_READY)
    jumped.wait_for_timeout(500)
    assert abs(jumped.evaluate("scrollY") - left) < 150


def test_the_index_leads_to_the_first_page(site, served, visit):
    seen = visit(f"{served}/index.html")
    seen.page.wait_for_url(lambda url: not url.endswith("/index.html"))
    assert seen.page.locator("article h1").first.is_visible()


def test_the_pages_of_the_library_describe_every_public_name(site):
    if not site.is_whole:
        pytest.skip("only the built book has the pages of the library: run `make book` first")
    html = "".join(page.read_text(encoding="utf-8") for page in site.folder.glob("book/api*.html"))
    public = [getattr(mirlib, name) for name in mirlib.__all__]
    assert [f"{o.__module__}.{o.__name__}" for o in public if f'id="{o.__module__}.{o.__name__}"' not in html] == []
