// MathJax sets a few formulas at a time, so that a page answers its reader in between.
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
