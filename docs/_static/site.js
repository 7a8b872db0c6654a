// Tables that do not fit their column are shown row by row, each cell with its heading.
function fitTables() {
  for (const table of document.querySelectorAll(".table-wrapper table")) {
    const headings = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
    for (const row of table.querySelectorAll("tbody tr"))
      [...row.children].forEach((cell, i) => (cell.dataset.label = headings[i] || ""));
    table.classList.remove("stacked");
    if (table.scrollWidth > table.parentElement.clientWidth + 1) table.classList.add("stacked");
  }
}

// Gallery: a click on a picture puts its card beside the others that were clicked.
function gallery() {
  const compare = document.querySelector(".compare");
  if (!compare) return;
  for (const card of document.querySelectorAll(".gallery .card"))
    card.querySelector("img").addEventListener("click", () => {
      card.classList.toggle("picked");
      compare.replaceChildren(
        ...[...document.querySelectorAll(".gallery .picked")].map((picked) => picked.cloneNode(true)),
      );
      for (const copy of compare.children) copy.classList.remove("picked");
    });
}

addEventListener("load", () => { fitTables(); gallery(); });
addEventListener("resize", fitTables);
document.addEventListener("toggle", fitTables, true); // a fold was opened
