"""Every built page, as axe-core sees it: nothing serious or critical, in the light theme and in the dark one."""

import os

import pytest

pytestmark = pytest.mark.browser

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
OF_THEME_AND_WIDTH = ["color-contrast", "link-in-text-block", "target-size", "scrollable-region-focusable"]
"""Rules whose answer another theme or width can change."""
# What is alike is looked at once, which halves the time: of neighbouring descriptions of the library the first, and of
# the tokens of code one of each kind. The glyphs of formulas are hidden from a reader of the screen, and are no text.
THIN = """() => {
  for (const one of document.querySelectorAll("dl.py ~ dl.py, mjx-math")) one.remove();
  const seen = new Set();
  for (const one of document.querySelectorAll(".highlight span[class]")) {
    if (seen.has(one.className)) one.replaceWith(one.textContent);
    else seen.add(one.className);
  }
}"""
RUN = """async (values) => {
  const runOnly = { type: values.includes("best-practice") ? "tag" : "rule", values };
  const options = { runOnly, resultTypes: ["violations"], preload: false };
  const { violations } = await axe.run(options);
  return violations
    .filter((one) => ["serious", "critical"].includes(one.impact))
    .flatMap((one) => one.nodes.map((node) => `${one.id}: ${node.html.slice(0, 120)}: ${node.any[0]?.message ?? ""}`));
}"""


@pytest.fixture(scope="module")
def axe():
    """The script. It comes in a package, so that no page and no test loads it from another host."""
    try:
        from axe_playwright_python.base import AXE_SCRIPT
    except ImportError:
        if os.environ.get("MIRLIB_REQUIRE_BROWSER"):
            pytest.fail("the package axe-playwright-python of the extra 'test' is missing")
        pytest.skip("THE PAGES WERE NOT TESTED FOR ACCESSIBILITY: install the extra 'test'.")
    return AXE_SCRIPT


def faults(seen, axe, runs):
    """What axe finds in the open page, for each width and theme with the rules that are asked."""
    seen.page.evaluate(axe)
    seen.page.evaluate(THIN)
    for width, theme, rules in runs:
        seen.page.set_viewport_size({"width": width, "height": 900})
        seen.page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
        seen.page.wait_for_timeout(700)  # colours fade, and the theme looks after a while which boxes scroll now
        for fault in seen.page.evaluate(RUN, rules):
            yield f"{width} px, {theme}: {fault}"


def test_axe_finds_nothing_serious_on_any_page(site, served, visit, axe):
    runs = (1280, "light", RULES), (390, "dark", OF_THEME_AND_WIDTH)
    seen = visit()
    problems = []
    for path in site.pages:
        seen.go(f"{served}/{path.relative_to(site.folder).as_posix()}")
        problems += [f"{path.stem}, {fault}" for fault in faults(seen, axe, runs)]
    assert not problems, "\n".join(problems)


def test_axe_sees_a_button_without_a_name_and_pale_words(visit, axe):
    seen = visit()
    seen.page.set_content(
        '<!doctype html><html lang="en"><title>x</title><main><h1>x</h1><button></button>'
        '<p style="color: #ccc; background: #fff">pale</p></main></html>'
    )
    found = " ".join(faults(seen, axe, [(1280, "light", RULES)]))
    assert "button-name" in found and "color-contrast" in found
