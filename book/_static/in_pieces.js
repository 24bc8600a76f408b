// A page is laid out a section at a time, and its formulas are set a few at a time, so that it answers in between.
addEventListener("load", async () => {
  for (const section of document.querySelectorAll(".bd-article section section")) {
    await new Promise(requestAnimationFrame);
    section.style.contentVisibility = "visible";
  }
  document.documentElement.dataset.whole = "";
});
if (self.MathJax) {
  MathJax.startup = {
    pageReady: async () => {
      const formulas = [...document.querySelectorAll(".math")];
      while (formulas.length) {
        await new Promise((resolve) => setTimeout(resolve));
        await MathJax.typesetPromise(formulas.splice(0, 4));
      }
    },
  };
}
