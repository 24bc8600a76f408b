"""The built pages, in a browser: self-contained, whole, and readable on a phone."""

import pytest

import mirlib

pytestmark = pytest.mark.browser

EQUATIONS_READY = "() => window.MathJax?.startup?.promise?.then(() => true) ?? false"
IMAGES = """() => [...document.images].map(i => [i.src.split('/').pop(), i.naturalWidth])"""


def test_the_whole_book_stands_in_the_build(site):
    if not site.is_whole:
        pytest.skip("ONLY A SAMPLE PAGE WAS TESTED: run `make book` first to test every page of the book.")
    names = {page.stem for page in site.pages}
    assert {"intro", "api", "glossary", "01_modality_gap", "05_mir_on_llava"} <= names


def test_every_page_is_whole_and_asks_no_other_host(site, address, visit):
    problems = []
    seen = visit()
    for path in site.pages:
        seen.go(address(path))
        html = path.read_text(encoding="utf-8")
        if 'class="math' in html:
            seen.page.wait_for_function(EQUATIONS_READY)
            if not seen.page.locator("mjx-container").count():
                problems.append(f"{path.stem}: equations are not set")
            problems += [f"{path.stem}: equation: {t}" for t in seen.page.locator("mjx-merror").all_text_contents()]
        for name, width in seen.page.evaluate(IMAGES):
            if width == 0:
                problems.append(f"{path.stem}: picture {name} is not shown")
        if mounts := html.count('class="mirlib-mount"'):
            seen.page.wait_for_function("n => document.querySelectorAll('.mirlib-widget').length === n", arg=mounts)
        problems += [f"{path.stem}: asks {url}" for url in seen.foreign]
        problems += [f"{path.stem}: {error}" for error in seen.errors]
    assert problems == []


def test_no_page_is_wider_than_a_phone(site, served, visit):
    wide = {}
    seen = visit(width=360)
    for path in site.pages:
        seen.go(f"{served}/{path.relative_to(site.folder).as_posix()}")
        width = seen.page.evaluate("document.documentElement.scrollWidth")
        if width > 360:
            wide[path.stem] = width
    assert wide == {}


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
