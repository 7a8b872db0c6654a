// What a reader would stumble over on this page, as sentences.
({legible}) => {
  const found = [];
  const name = (e) => (e.textContent || e.src || "").trim().slice(0, 60);
  if (document.documentElement.scrollWidth > innerWidth + 1)
    found.push("the page is wider than the window");
  for (const table of document.querySelectorAll("article table")) {
    const room = table.closest("div").clientWidth;
    if (table.offsetParent && table.scrollWidth > room + 1)
      found.push(`table too wide by ${table.scrollWidth - room}: ${name(table)}`);
  }
  for (const image of document.querySelectorAll("article img")) {
    if (!image.complete || !image.naturalWidth) found.push(`picture missing: ${image.src}`);
    else if (image.offsetParent && image.clientWidth < legible)
      found.push(`picture ${image.clientWidth} pixels wide: ${image.src}`);
  }
  for (const math of document.querySelectorAll("article .math"))
    if (!math.querySelector("mjx-container")) found.push(`formula not set: ${name(math)}`);
  for (const failed of document.querySelectorAll("mjx-merror, [data-mjx-error]"))
    found.push(`formula with an error: ${name(failed)}`);
  const text = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
  const code = "pre, code, script, style, mjx-container";
  const tex = /\\[(\[]|\$[^$ ]+\$|\\(frac|times|lVert)/;
  while (text.nextNode())
    if (!text.currentNode.parentElement.closest(code) && tex.test(text.currentNode.data))
      found.push(`raw TeX: ${text.currentNode.data.trim().slice(0, 60)}`);
  return found;
}
