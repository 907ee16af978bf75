// Small functions. Everything from the data becomes text of the page, never HTML: textContent throughout.

/** Make an element with attributes and children; children that are strings become text. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function byId(id) {
  return document.getElementById(id);
}

/** Read the JSON that stands in an element of the page. */
function embedded(id) {
  const place = byId(id);
  return place ? JSON.parse(place.textContent) : null;
}

/** Write a number as people read it: whole numbers in full, others with four digits. */
function shownNumber(value) {
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e15) return size < 10000 ? String(value) : value.toLocaleString("en-US");
  if (size >= 1e12 || size < 1e-4) return Number(value.toPrecision(4)).toString();
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(4)));
}

function shownValue(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "number" ? shownNumber(value) : value;
}

/** Write a time with the unit that fits it. [s] */
function shownSeconds(seconds) {
  const size = Math.abs(seconds);
  if (size === 0) return "0 s";
  if (size < 1e-3) return `${Number((seconds * 1e6).toPrecision(4))} µs`;
  if (size < 1) return `${Number((seconds * 1e3).toPrecision(4))} ms`;
  return `${shownNumber(Number(seconds.toPrecision(5)))} s`;
}

/** Plotly reads some HTML in its texts; this shows a text as it stands. */
function plotlyText(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

/** Hand a text to the reader as a file. */
function download(text, name, type) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** Make a name of a file out of a title. */
function slug(title) {
  return title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "") || "study";
}
