// Add ?lecture to the address of a chapter, and it is shown to a class: each result, with the text that speaks of it, and
// what the chapter says in the end stay folded away until you ask. Any other address shows the page as it is.
const STAYS = "section, .cell, .admonition, h1, h2, h3"; // where the text that speaks of a result ends

function fold(nodes) {
  const figure = nodes[0].querySelector(".caption-number")?.textContent.trim();
  const finding = document.createElement("details");
  const summary = document.createElement("summary");
  summary.textContent = figure ? `What happens? (${figure})` : "What happens?";
  finding.className = "finding";
  finding.append(summary);
  nodes[0].before(finding);
  finding.append(...nodes);
}

function following(node, stays) {
  const found = [];
  for (let next = node.nextElementSibling; next && !next.matches(stays); next = next.nextElementSibling) found.push(next);
  return found;
}

document.addEventListener("DOMContentLoaded", () => {
  if (!new URLSearchParams(location.search).has("lecture")) return;
  document.documentElement.classList.add("lecture");
  for (const cell of document.querySelectorAll(".bd-article .cell:not(.solution *)")) {
    const result = ".cell_output :is(img, table, pre):not(.mirlib-mount *)"; // a widget stays in sight
    if (cell.querySelector(result)) fold([cell, ...following(cell, STAYS)]);
  }
  for (const head of document.querySelectorAll(".bd-article h2")) {
    if (/^(What we know now|The paper says)/.test(head.textContent)) fold(following(head, "section"));
  }
});
