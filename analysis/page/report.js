"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const numeric = head.classList.contains("n");
    const keyed = [...table.tBodies[0].rows].map((row) => {
      const cell = row.cells[column];
      return { row, key: numeric ? parseFloat(cell.dataset.v) : cell.textContent, none: numeric ? !("v" in cell.dataset) : cell.textContent === "–" };
    });
    const sign = down ? -1 : 1;
    keyed.sort((a, b) => a.none - b.none || sign * (numeric ? a.key - b.key : a.key.localeCompare(b.key, "en", { numeric: true })));
    table.tBodies[0].append(...keyed.map((entry) => entry.row));
  }));
}
for (const field of document.querySelectorAll(".filter input")) {
  const rows = [...field.closest("details").querySelector("table").tBodies[0].rows];
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  });
}
const unfold = () => {
  const shown = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let part = shown; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  if (shown) shown.scrollIntoView();
};
addEventListener("hashchange", unfold);
unfold();
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
