"use strict";
// A click on a column's header sorts the table by it: numbers largest first, then smallest first; cells without a number come last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending" || (column === 0 && !head.hasAttribute("aria-sort"));
      heads.forEach(each => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const sign = up ? 1 : -1;
      const keyed = [...table.tBodies[0].rows].map(row => {
        const text = row.cells[column].textContent.trim();
        return { row, text, number: parseFloat(text) };
      });
      keyed.sort((a, b) => column === 0
        ? sign * a.text.localeCompare(b.text, undefined, { numeric: true })
        : (isNaN(a.number) - isNaN(b.number)) || (isNaN(a.number) ? 0 : sign * (a.number - b.number)));
      table.tBodies[0].append(...keyed.map(each => each.row));
    });
  });
}
