// Add ?lecture to the address of a chapter, and it is shown to a class: what comes after a prediction, and what a
// chapter has found in the end, stays folded away until you ask for it. Any other address shows the page as it is.
function fold(nodes, label) {
  const finding = document.createElement("details");
  const summary = document.createElement("summary");
  summary.textContent = label;
  finding.className = "finding";
  finding.append(summary);
  nodes[0].before(finding);
  finding.append(...nodes);
}

// The siblings from a node on, up to the next one that must stay in sight.
function following(node) {
  const found = [];
  const stays = "section, .admonition, h1, h2, h3, .exercise";
  for (let next = node.nextElementSibling; next && !next.matches(stays); next = next.nextElementSibling) found.push(next);
  return found;
}

function titled(selector, words) {
  return [...document.querySelectorAll(`.bd-article ${selector}`)].filter((node) => words.test(node.textContent.trim()));
}

document.addEventListener("DOMContentLoaded", () => {
  if (!new URLSearchParams(location.search).has("lecture")) return;
  document.documentElement.classList.add("lecture");
  const heads = [...titled(".admonition-title", /^Predict/).map((title) => title.parentElement), ...titled("h2", /^(What we know now|The paper says)/)];
  for (const head of heads) {
    const nodes = following(head);
    if (nodes.length) fold(nodes, "What happens?");
  }
  // A figure or a number that no prediction stands before.
  for (const output of document.querySelectorAll(".bd-article .cell_output:not(.finding *)")) fold([output], "Show it");
});
