// Charts: plotly draws what the data says; the colours of text and lines come from the page's style.

const LIGHT = { ink: "#22262a", muted: "#636a71", line: "#dcdfe2", raised: "#ffffff", empty: "#d9d9d9" };

function theme() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(Object.keys(LIGHT).map((key) => [key, style.getPropertyValue(`--${key}`).trim()]));
}

/** Colour a layout: text, grid, the ground of heatmaps (which shows where nothing fits), what hovers. */
function themed(layout, colors, heatmap) {
  const axis = (given) => ({
    gridcolor: colors.line, zerolinecolor: colors.line, linecolor: colors.muted, tickcolor: colors.line,
    ticks: "outside", ticklen: 4, automargin: true, zeroline: false, showgrid: given.type !== "category",
    ...given, title: { standoff: 8, font: { size: 14 }, ...given.title },
  });
  return {
    ...layout,
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colors.ink },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: heatmap ? colors.empty : "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: colors.raised, bordercolor: colors.muted, font: { color: colors.ink, size: 13 }, align: "left", namelength: -1 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colors.muted, activecolor: colors.ink, orientation: "h" },
    legend: { orientation: "h", x: 0, xanchor: "left", yref: "container", y: 0.01, yanchor: "bottom", itemsizing: "constant", ...layout.legend },
    xaxis: axis(layout.xaxis),
    yaxis: axis(layout.yaxis),
    shapes: (layout.shapes || []).map((shape) => ({ ...shape, line: { color: colors.muted, width: 1, ...shape.line } })),
  };
}

/** Two buttons that save the picture, always on white: it goes into somebody's paper. */
function pictureButtons(figure, name, title, heatmap) {
  const save = (format) => () => {
    const layout = themed(figure.layout, LIGHT, heatmap);
    const heading = { text: plotlyText(title), x: 0.02, y: 0.97, yanchor: "top", font: { size: 16 } };
    Object.assign(layout, { paper_bgcolor: "#ffffff", title: heading, margin: { l: 70, r: 30, t: 74, b: 60 } });
    // Without the mark of the row that happens to be chosen.
    const data = figure.data.map(({ selectedpoints, ...trace }) => trace);
    Plotly.downloadImage({ data, layout, config: {} }, { format, filename: name, width: 900, height: 560, scale: format === "png" ? 2 : 1 });
  };
  return ["svg", "png"].map((format) => ({
    name: `save-${format}`,
    title: `Download as ${format.toUpperCase()}`,
    icon: format === "svg" ? Plotly.Icons["disk"] : Plotly.Icons.camera,
    click: save(format),
  }));
}

function configured(figure, name, title, heatmap) {
  return {
    responsive: true,
    displaylogo: false,
    // Nothing of a study leaves the page.
    showSendToCloud: false,
    plotlyServerURL: "",
    displayModeBar: "hover",
    modeBarButtonsToRemove: ["toImage", "lasso2d", "select2d", "autoScale2d"],
    modeBarButtonsToAdd: pictureButtons(figure, name, title, heatmap),
  };
}

function chartHeight(figure) {
  const trace = figure.data[0] || {};
  const rows = trace.type === "heatmap" || trace.orientation === "h" ? trace.y.length : 0;
  return Math.max(400, 150 + 30 * rows);
}

/** Draw one chart; a click on a point chooses the row behind it. */
function drawChart(chart, place, choose) {
  const { figure } = chart;
  const heatmap = figure.data.some((trace) => trace.type === "heatmap");
  const sized = { ...figure.layout, height: chartHeight(figure), margin: { l: 56, r: 12, t: 34, b: 48 } };
  Plotly.newPlot(place, figure.data, themed(sized, theme(), heatmap), configured(figure, chart.key, chart.title, heatmap));
  place.on("plotly_click", (event) => {
    const row = event.points[0].customdata;
    if (Number.isInteger(row)) choose(row, "chart");
  });
  place.on("plotly_relayout", (change) => freeTicks(place, change));
  place.dataset.ready = "yes";
  return () => Plotly.relayout(place, themed({ ...sized, ...axisRanges(place) }, theme(), heatmap));
}

/** Let plotly number a logarithmic axis that was zoomed, and go back to round numbers when all is shown. */
function freeTicks(place, change) {
  for (const name of ["xaxis", "yaxis"]) {
    if (!place.layout[name].tickvals) continue;
    if (`${name}.range[0]` in change) Plotly.relayout(place, { [`${name}.tickmode`]: "auto" });
    else if (change[`${name}.autorange`]) Plotly.relayout(place, { [`${name}.tickmode`]: "array" });
  }
}

/** Keep what the reader has zoomed to when colours change. */
function axisRanges(place) {
  const kept = {};
  for (const name of ["xaxis", "yaxis"]) kept[name] = { ...place.layout[name] };
  for (const axis of Object.values(kept)) ["gridcolor", "zerolinecolor", "linecolor", "tickcolor"].forEach((key) => delete axis[key]);
  return kept;
}

/** Show where a row is in every chart: its points stay bright, the others step back (as the traces say). */
function markRow(row) {
  if (row === null) return;
  const places = [...document.querySelectorAll("#charts .plot[data-ready]")];
  const next = () => {
    const place = places.shift();
    if (!place || row !== state.chosen) return; // another row has been chosen meanwhile
    markIn(place, row);
    setTimeout(next, 0);
  };
  next();
}

function markIn(place, row) {
  const traces = place.data.flatMap((trace, index) => (trace.selected ? [index] : []));
  const found = traces.map((index) => place.data[index].customdata.flatMap((each, i) => (each === row ? [i] : [])));
  const any = found.some((points) => points.length);
  if (!any && !place.dataset.marked) return;
  place.dataset.marked = any ? "yes" : "";
  Plotly.restyle(place, { selectedpoints: any ? found : [null] }, traces);
}

/** Put up all charts, one after another so that the page answers in between. */
function putUpCharts(charts, choose) {
  const recolor = [];
  const places = charts.map((chart) => {
    const place = element("div", { class: "plot", id: `chart-${chart.key}`, role: "img", "aria-label": chart.title });
    place.style.minHeight = `${chartHeight(chart.figure)}px`;
    const caption = chart.note ? [element("figcaption", {}, chart.note)] : [];
    byId("charts").append(element("figure", {}, element("h3", {}, chart.title), place, ...caption));
    return place;
  });
  const next = (index) => {
    if (index === charts.length) return markRow(state.chosen);
    recolor.push(drawChart(charts[index], places[index], choose));
    setTimeout(next, 0, index + 1);
  };
  next(0);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => recolor.forEach((each) => each()));
}
