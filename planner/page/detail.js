// The plan behind a row: its figures, its timeline and its report.

const LANE_WORDS = {
  gpu: "GPU", cpu: "CPU", h2d: "CPU to GPU", d2h: "GPU to CPU", disk_read: "disk reads", disk_write: "disk writes",
};

function showDetail(data, row) {
  const place = byId("detail");
  const old = place.querySelector(".gantt");
  if (old) Plotly.purge(old);
  const parts = [detailBar(row), figuresList(data, row)];
  if (data.reasons[row]) parts.push(element("p", { class: "failure" }, data.reasons[row]));
  const detail = embedded(`detail-${row}`) || {};
  const gantt = detail.timeline ? element("div", { class: "gantt" }) : null;
  if (gantt) parts.push(element("h3", {}, "Simulated timeline"), gantt, timelineNote(detail.timeline));
  if (detail.plan) parts.push(element("h3", {}, "The plan"), element("pre", { tabindex: "0" }, detail.plan));
  if (!gantt && !detail.plan && !data.reasons[row]) parts.push(element("p", { class: "hint" }, "This page holds no plan for this row."));
  place.replaceChildren(...parts);
  place.scrollTop = 0;
  if (gantt) drawGantt(gantt, detail.timeline, data.colors, row);
}

function detailBar(row) {
  const back = element("button", { type: "button", class: "back" }, "Back");
  back.addEventListener("click", goBack);
  return element("div", { class: "bar" }, element("h2", {}, `Row ${row}`), back);
}

function figuresList(data, row) {
  const list = element("dl", { class: "figures" });
  data.columns.forEach((column, index) => {
    const value = data.rows[row][index];
    if (!column.brief || value === null || value === "" || column.key === "reason") return;
    const unit = column.unit ? ` ${column.unit}` : "";
    list.append(element("div", {}, element("dt", {}, column.title), element("dd", {}, shownValue(value) + unit)));
  });
  return list;
}

function timelineNote(timeline) {
  const tasks = timeline.tasks.reduce((sum, each) => sum + each, 0);
  const passes = timeline.passes.map(passWords).join(", ");
  const merged = tasks > timeline.start.length ? ` ${shownNumber(tasks)} tasks in ${timeline.start.length} spans; one of many tasks is named after what takes most of its time, and pale where the lane is idle in between.` : "";
  return element("p", { class: "small" }, `Played: ${passes || "one pass"}.${merged} Drag over the timeline to zoom, double-click to see all of it.`);
}

function passWords([number, , prompts]) {
  return prompts ? `pass ${number} (with prompts)` : `pass ${number}`;
}

/** Draw the timeline: lanes from top to bottom, a colour for each operation. */
function drawGantt(place, timeline, colors, row) {
  const rows = labelRows(timeline);
  const lanes = timeline.lanes.filter((_, lane) => timeline.lane.includes(lane));
  const data = timeline.operations.map((name, code) => operationTrace(timeline, name, code, colors[name] || "#8c8c8c"));
  data.sort((a, b) => b.total - a.total);
  const layout = {
    height: 150 + 42 * lanes.length + 20 * Math.ceil(data.length / 3),
    margin: { l: 20, r: 10, t: 34 + 16 * (1 + Math.max(0, ...rows)), b: 40 },
    barmode: "overlay",
    bargap: 0.18,
    hovermode: "closest",
    dragmode: "zoom",
    legend: { font: { size: 12 }, traceorder: "normal" },
    xaxis: { type: "linear", title: { text: "time [s]" }, rangemode: "tozero" },
    yaxis: { type: "category", categoryorder: "array", categoryarray: lanes.map(laneName), autorange: "reversed", fixedrange: true },
    shapes: timeline.passes.map(([, start]) => ({ type: "line", x0: start, x1: start, yref: "paper", y0: 0, y1: 1, line: { dash: "dot" } })),
    annotations: timeline.passes.map((pass, i) => ({
      x: pass[1], xanchor: "left", y: 1, yref: "paper", yanchor: "bottom", yshift: 15 * rows[i], showarrow: false, text: `pass ${pass[0]}`, font: { size: 12 },
    })),
    showlegend: true,
  };
  const figure = { data, layout };
  const draw = () => Plotly.react(place, data, themed(layout, theme(), false), configured(figure, `timeline-row-${row}`, `Timeline of row ${row}`, false));
  draw();
  place.dataset.ready = "yes";
  state.recolorDetail = draw;
}

/** Choose a row for the label of each pass: the lowest in which it does not touch the one before. */
function labelRows(timeline) {
  const apart = 0.16 * Math.max(...timeline.end);
  const ends = [];
  return timeline.passes.map(([, start]) => {
    let row = ends.findIndex((end) => start >= end);
    if (row < 0) row = ends.length;
    ends[row] = start + apart;
    return row;
  });
}

function laneName(lane) {
  return plotlyText(LANE_WORDS[lane] || lane);
}

function operationTrace(timeline, name, code, color) {
  const spans = timeline.operation.flatMap((each, i) => (each === code ? [i] : []));
  const words = plotlyText(name.replaceAll("_", " "));
  const took = spans.map((i) => timeline.end[i] - timeline.start[i]);
  return {
    type: "bar",
    orientation: "h",
    name: words,
    base: spans.map((i) => timeline.start[i]),
    x: took,
    y: spans.map((i) => laneName(timeline.lanes[timeline.lane[i]])),
    // A span of many tasks is as pale as the lane was idle in it.
    marker: { color, opacity: spans.map((i) => 0.15 + 0.85 * timeline.busy[i]), line: { width: 0 } },
    hovertext: spans.map((i, k) => spanWords(timeline, i, words, took[k])),
    hoverinfo: "text",
    total: took.reduce((sum, each) => sum + each, 0),
  };
}

function spanWords(timeline, i, words, took) {
  const busy = Math.round(100 * timeline.busy[i]);
  const tasks = timeline.tasks[i] > 1 ? `<br>${shownNumber(timeline.tasks[i])} tasks, busy ${busy} %` : "";
  return `${words}<br>${shownSeconds(timeline.start[i])} to ${shownSeconds(timeline.end[i])}<br>takes ${shownSeconds(took)}${tasks}`;
}
