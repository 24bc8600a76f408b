// What does not fit on the open page, or should not stand on it: a list of sentences. Run by test_pages.py.
(wide) => {
  const found = [];
  const article = document.querySelector("article");
  const words = (e) => (e.alt || e.textContent).trim().replace(/\s+/g, " ").slice(0, 60);
  const across = getComputedStyle;

  // Everything that is folded away is looked at, too.
  for (const fold of article.querySelectorAll("details")) fold.open = true;
  for (const fold of article.querySelectorAll(".toggle-hidden")) fold.classList.remove("toggle-hidden");

  if (document.documentElement.scrollWidth > innerWidth)
    found.push(`the page is ${document.documentElement.scrollWidth} px wide`);

  for (const e of article.querySelectorAll("pre, table, div.math, mjx-container, figure, img, svg")) {
    const box = e.getBoundingClientRect();
    if (!box.width || e.closest("mjx-assistive-mml, .visually-hidden")) continue;
    const what = `${e.localName} “${words(e)}”`;
    if (e.matches("pre, div.math") && e.scrollWidth > e.clientWidth + 1 && (wide || across(e).overflowX !== "auto"))
      found.push(`${what} is clipped: ${e.scrollWidth} px in ${e.clientWidth}`);
    // The nearest thing around it that cuts, or lets scroll, what sticks out of it.
    let frame = e.parentElement;
    while (frame !== document.body && across(frame).overflowX === "visible") frame = frame.parentElement;
    const edge = frame.getBoundingClientRect().right;
    if (box.right <= edge + 1) continue;
    const scrolls = frame !== document.body && /auto|scroll/.test(across(frame).overflowX);
    if (wide || !scrolls) found.push(`${what} sticks out by ${Math.round(box.right - edge)} px`);
  }

  for (const image of document.images) {
    if (!image.alt.trim() || /\.(png|svg|jpe?g)$/.test(image.alt)) found.push(`no words for picture ${image.src.slice(-40)}`);
    if (image.complete && !image.naturalWidth) found.push(`picture ${image.src.slice(-40)} is not shown`);
  }

  for (const e of article.querySelectorAll(".admonition-title")) {
    const { content, fontFamily } = across(e, "::after");
    if (/[\ue000-\uf8ff]/.test(content) && !/Awesome/.test(fontFamily)) found.push(`an empty box behind “${words(e)}”`);
  }

  const text = article.cloneNode(true);
  for (const e of text.querySelectorAll("script, style, svg, mjx-container, .highlight-python, dl.py")) e.remove();
  for (const hit of text.textContent.matchAll(/<(IPython|Axes|matplotlib|seaborn|pandas)[^>]*>?|\bat 0x[0-9a-f]+|(?<![/\d])\d+\.\d{13,}/g))
    found.push(`raw output: ${hit[0].slice(0, 60)}`);
  return found;
}
