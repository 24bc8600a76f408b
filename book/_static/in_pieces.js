// A page is laid out a section at a time, and its formulas are set a few at a time, so that it answers in between.
// Both move what stands below, so the place that the address names is looked up again, unless the reader has gone on, or
// has come back, to where the browser knows that she was.
{
  let goneOn = performance.getEntriesByType("navigation")[0]?.type !== "navigate";
  for (const kind of ["wheel", "touchmove", "keydown", "pointerdown"])
    addEventListener(kind, () => (goneOn = true), { once: true, passive: true });
  const lookAgain = () => goneOn || document.querySelector(":target")?.scrollIntoView({ behavior: "instant" });
  addEventListener("load", async () => {
    for (const section of document.querySelectorAll(".bd-article section section")) {
      await new Promise(requestAnimationFrame);
      section.style.contentVisibility = "visible";
    }
    document.documentElement.dataset.whole = "";
    lookAgain();
  });
  if (self.MathJax) {
    MathJax.startup = {
      pageReady: async () => {
        const formulas = [...document.querySelectorAll(".math")];
        while (formulas.length) {
          await new Promise((resolve) => setTimeout(resolve));
          await MathJax.typesetPromise(formulas.splice(0, 4));
        }
        lookAgain();
      },
    };
  }
}
