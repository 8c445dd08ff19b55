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
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
