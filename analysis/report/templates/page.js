// Tables sort by a click on a column's name: by number where every cell begins with one.
const UNITS = { k: 1e3, M: 1e6, B: 1e9, G: 1e9, T: 1e12 };
function value(cell) {
  const text = cell.textContent.trim().replaceAll(",", "");
  if (text === "–" || text === "") return null;
  if (text.startsWith("∞")) return Infinity;
  const found = text.match(/^(?:at (?:least|most)|[<>±])?\s*([-+−]?[\d.]+(?:e[-+]?\d+)?)\s*([kMBGT])?/);
  return found ? parseFloat(found[1].replace("−", "-")) * (UNITS[found[2]] ?? 1) : NaN;
}
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const rows = [...body.rows];
    const column = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    const keys = new Map(rows.map((row) => [row, value(row.cells[column])]));
    const numeric = [...keys.values()].every((key) => key === null || !Number.isNaN(key));
    rows.sort((a, b) => {
      const [x, y] = numeric
        ? [keys.get(a), keys.get(b)]
        : [a, b].map((row) => row.cells[column].textContent.trim());
      if (x === null || y === null) return (x === null) - (y === null);
      return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
    });
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  });
}
// On paper nothing can be opened: what a figure rests on is printed with it.
const notes = document.querySelectorAll("details");
addEventListener("beforeprint", () => notes.forEach((note) => { note.open = true; }));
addEventListener("afterprint", () => notes.forEach((note) => { note.open = false; }));
