// The table: sorted by a click on a heading, filtered by words, chosen by click or Enter.

const rowElements = []; // by number of the row
let sorting = { column: null, down: false };

function fillTable(data, choose) {
  const head = element("tr", {}, headingCell({ title: "row", unit: "", kind: "number" }, -1));
  data.columns.forEach((column, index) => head.append(headingCell(column, index)));
  document.querySelector("#table thead").append(head);
  const body = document.createDocumentFragment();
  data.rows.forEach((values, row) => {
    rowElements.push(rowElement(data, values, row, choose));
    body.append(rowElements[row]);
  });
  document.querySelector("#table tbody").append(body);
  byId("filter").addEventListener("input", applyFilter);
  byId("download").addEventListener("click", () => download(csv(data), `${slug(data.title)}.csv`, "text/csv;charset=utf-8"));
  applyFilter();
}

function headingCell(column, index) {
  const parts = [column.title, element("span", { class: "arrow", "aria-hidden": "true" })];
  // The arrow stands on the side where the column is ragged.
  const button = element("button", { type: "button" }, ...(column.kind === "number" ? parts.reverse() : parts));
  if (column.unit) button.append(element("span", { class: "unit" }, column.unit));
  button.addEventListener("click", () => sortBy(index));
  return element("th", { scope: "col", class: column.kind, "aria-sort": "none", "data-column": index }, button);
}

function rowElement(data, values, row, choose) {
  const reason = data.reasons[row];
  const made = element("tr", { id: `row-${row}`, tabindex: "0", class: reason ? "failed" : null });
  made.append(element("td", { class: "number" }, element("a", { href: `#row-${row}`, tabindex: "-1" }, String(row))));
  // A row that failed has no values from some column on: its reason stands there.
  let filled = values.length;
  while (reason && filled > 0 && values[filled - 1] === null) filled -= 1;
  data.columns.slice(0, filled).forEach((column, index) => made.append(valueCell(column, values[index])));
  if (filled < values.length) made.append(element("td", { class: "reason", colspan: values.length - filled }, reason));
  else if (reason) made.title = reason;
  made.addEventListener("click", () => choose(row, "table"));
  made.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(row, "table");
    }
  });
  made.searched = [row, ...values.map(shownValue), reason || ""].join("\n").toLowerCase();
  return made;
}

function valueCell(column, value) {
  const text = shownValue(value);
  return element("td", { class: column.kind, title: text === String(value) && text.length < 30 ? null : String(value ?? "") || null }, text);
}

/** Compare two values of a column; what is missing comes last whichever way the sorting goes. */
function compareValues(a, b, kind, down) {
  const missing = (value) => value === null || value === undefined || value === "";
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  const order = kind === "number" ? Number(a) - Number(b) : String(a).localeCompare(String(b), "en", { numeric: true });
  return down ? -order : order;
}

/** Sort by a column, upwards first; a second click turns it round. Column -1 is the number of the row. */
function sortBy(index) {
  sorting = { column: index, down: sorting.column === index && !sorting.down };
  const { columns, rows } = state.data;
  const value = (row) => (index < 0 ? row : rows[row][index]);
  const kind = index < 0 ? "number" : columns[index].kind;
  const order = rows.map((_, row) => row).sort((a, b) => compareValues(value(a), value(b), kind, sorting.down) || a - b);
  document.querySelector("#table tbody").append(...order.map((row) => rowElements[row]));
  for (const cell of document.querySelectorAll("#table thead th")) {
    const here = Number(cell.dataset.column) === index;
    cell.setAttribute("aria-sort", here ? (sorting.down ? "descending" : "ascending") : "none");
    cell.querySelector(".arrow").textContent = here ? (sorting.down ? "▼" : "▲") : "";
  }
}

function applyFilter() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const row of rowElements) {
    row.hidden = !words.every((word) => row.searched.includes(word));
    count += !row.hidden;
  }
  const all = rowElements.length;
  byId("count").textContent = count === all ? `${all} rows` : `${count} of ${all} rows`;
}

/** Write the rows that are shown, in the order in which they are, with all digits. */
function csv(data) {
  const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replace(/"/g, '""')}"` : value);
  const failed = Object.keys(data.reasons).length > 0 && !data.columns.some((column) => column.key === "reason");
  const lines = [["row", ...data.columns.map((column) => column.heading), ...(failed ? ["reason"] : [])]];
  for (const shown of document.querySelectorAll("#table tbody tr:not([hidden])")) {
    const row = Number(shown.id.slice("row-".length));
    lines.push([String(row), ...data.rows[row].map((value) => String(value ?? "")), ...(failed ? [data.reasons[row] || ""] : [])]);
  }
  return lines.map((line) => line.map(quoted).join(",")).join("\r\n") + "\r\n";
}

/** Show which row is chosen and, unless the reader is in the table already, bring it into view there. */
function highlightRow(row, scroll) {
  document.querySelectorAll("#table tr.chosen").forEach((each) => {
    each.classList.remove("chosen");
    each.removeAttribute("aria-current");
  });
  const chosen = rowElements[row];
  if (!chosen) return;
  chosen.classList.add("chosen");
  chosen.setAttribute("aria-current", "true");
  if (scroll) {
    // Within the table's own frame only: the page itself must not jump away from a chart.
    const frame = document.querySelector(".scroll");
    frame.scrollTop = chosen.offsetTop - frame.clientHeight / 2;
  }
}
