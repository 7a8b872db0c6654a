// Tables that do not fit their column get smaller letters, or are shown row by row, each cell with
// its heading.
function fitTables() {
  for (const table of document.querySelectorAll(".table-wrapper table")) {
    const headings = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
    for (const row of table.querySelectorAll("tbody tr"))
      [...row.children].forEach((cell, i) => (cell.dataset.label = headings[i] || ""));
    table.classList.remove("compact", "stacked");
    for (const narrower of ["compact", "stacked"])
      if (table.scrollWidth > table.parentElement.clientWidth + 1) table.classList.add(narrower);
  }
}

// Names in a first column may be broken after an underscore, and nowhere else.
function breakNames() {
  for (const cell of document.querySelectorAll(".table-wrapper td:first-child")) {
    const text = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    const parts = [];
    while (text.nextNode()) parts.push(text.currentNode);
    for (const part of parts)
      part.replaceWith(
        ...part.data.split(/(?<=_)/).flatMap((word, i) => (i ? [document.createElement("wbr"), word] : [word])),
      );
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

addEventListener("load", () => { breakNames(); fitTables(); gallery(); });
addEventListener("resize", fitTables);
document.addEventListener("toggle", fitTables, true); // a fold was opened
