// A figure of several panels keeps a width at which its words can be read. On a phone its box scrolls sideways, as the
// boxes of the tables do, by the arrow keys, too; without this script the whole figure is fitted into the page, as any other.
const WIDE = 760; // pixels of the picture as it was drawn; one panel has fewer

function box(image) {
  if (image.naturalWidth < WIDE || image.closest(".wide-figure")) return;
  const scroller = document.createElement("div");
  scroller.className = "wide-figure";
  const outer = image.parentElement.matches("a") ? image.parentElement : image;
  outer.replaceWith(scroller);
  scroller.append(outer);
  reach(scroller);
}

function reach(scroller) {
  if (scroller.scrollWidth > scroller.clientWidth) scroller.tabIndex = 0;
  else scroller.removeAttribute("tabindex");
}

document.addEventListener("DOMContentLoaded", () => {
  for (const image of document.querySelectorAll(".bd-article div.cell_output img")) {
    if (image.complete) box(image);
    else image.addEventListener("load", () => box(image));
  }
});
addEventListener("resize", () => document.querySelectorAll(".wide-figure").forEach(reach));
