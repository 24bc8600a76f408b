// What the theme does to a whole page when it is there is done before it is: light or dark, and the style of the icons.
{
  const { dataset } = document.documentElement;
  if (dataset.mode === "auto") dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const style = document.createElement("style");
  style.textContent = FontAwesome.dom.css();
  document.head.prepend(style); // before the theme's sheets, which name another font
  FontAwesome.config.autoAddCss = false;
  // Paper is white.
  let before = dataset.theme;
  addEventListener("beforeprint", () => ([before, dataset.theme] = [dataset.theme, "light"]));
  addEventListener("afterprint", () => (dataset.theme = before));
}
