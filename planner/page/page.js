// The page as a whole: reads the data, fills the parts, and keeps them at the same row.

const state = { data: null, chosen: null, cameFrom: null, recolorDetail: () => {} };

function paragraphs(place, texts) {
  place.append(...texts.map((text) => element("p", {}, text)));
}

/** Choose a row, wherever that was done: charts, table, detail and address agree afterwards. */
function choose(row, from) {
  if (!state.data.rows[row]) return;
  state.chosen = row;
  state.cameFrom = { y: window.scrollY, focus: document.activeElement };
  highlightRow(row, from !== "table");
  showDetail(state.data, row);
  markRow(row);
  if (location.hash !== `#row-${row}`) history.replaceState(null, "", `#row-${row}`);
  // On a narrow screen the plan stands below everything else.
  if (!isBeside()) byId("detail").scrollIntoView();
}

function isBeside() {
  return matchMedia("(min-width: 1100px)").matches;
}

/** Return to where a row was chosen. */
function goBack() {
  window.scrollTo(0, state.cameFrom ? state.cameFrom.y : 0);
  if (state.cameFrom) state.cameFrom.focus.focus({ preventScroll: true });
}

/** Choose the row that the address names; false if it names none. */
function followAddress() {
  const match = /^#row-(\d+)$/.exec(location.hash);
  if (match) choose(Number(match[1]), "address");
}

function start() {
  state.data = embedded("data");
  paragraphs(byId("description"), state.data.description);
  paragraphs(byId("notes"), state.data.notes);
  fillTable(state.data, choose);
  putUpCharts(state.data.charts, choose);
  followAddress();
  window.addEventListener("hashchange", followAddress);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => state.recolorDetail());
}

start();
