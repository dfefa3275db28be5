"use strict";
const page = JSON.parse(document.getElementById("figures").textContent);
const phone = matchMedia("(max-width: 700px)"), dark = matchMedia("(prefers-color-scheme: dark)");

function layoutOf(figure) {
  const layout = structuredClone(phone.matches ? figure.narrow.layout : figure.wide.layout);
  layout.template = structuredClone(page.template);
  layout.template.layout.font.color = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  layout.template.layout.paper_bgcolor = "rgba(0,0,0,0)";
  if (phone.matches) Object.assign(layout, { dragmode: false });  // a finger on a figure scrolls the page
  return layout;
}

function dataOf(figure) {
  let text = JSON.stringify(phone.matches ? figure.narrow.data ?? figure.wide.data : figure.wide.data);
  if (dark.matches) for (const [light, bright] of page.onDark) text = text.replaceAll(light, bright);
  return JSON.parse(text);
}

// A figure is drawn when it comes near the window, so that the page opens at once; before printing, all are. None is
// drawn before the page has loaded: its element would not have its final width.
const waiting = new Map();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) draw(entry.target.id);
}, { rootMargin: "500px" });
function draw(name) {
  const figure = waiting.get(name);
  if (!figure) return;
  waiting.delete(name);
  watcher.unobserve(document.getElementById(name));
  Plotly.newPlot(name, dataOf(figure), layoutOf(figure), { responsive: true, displayModeBar: false });
}
function redraw() {
  for (const figure of page.figures) {
    const element = document.getElementById(figure.name);
    element.style.minHeight = `${layoutOf(figure).height}px`;  // keeps the text below from moving when it is drawn
    waiting.set(figure.name, figure);
    watcher.unobserve(element);
    watcher.observe(element);
  }
}
addEventListener("load", redraw);
addEventListener("beforeprint", () => [...waiting.keys()].forEach(draw));
phone.addEventListener("change", redraw);
dark.addEventListener("change", redraw);

// A figure's numbers as CSV, made when the reader asks for them, so that the page stays one file.
function tableOf(figure) {
  const rows = [["panel", "series", "x", "y", "value", "low", "high", "about"]];
  const panel = (trace) => figure.wide.layout[(trace.xaxis ?? "x").replace("x", "xaxis")]?.title?.text ?? "";
  const at = (values, index) => Array.isArray(values) ? values[index] : values;
  const about = (trace, index) => [at(trace.hovertext, index) ?? trace.meta ?? "", trace.customdata?.[index] ?? ""]
    .flat().filter((part) => part !== "").join("; ");
  for (const trace of figure.wide.data) {
    if (trace.hoverinfo === "skip") continue;
    if (trace.z) {
      trace.z.forEach((line, row) => line.forEach((value, column) =>
        rows.push([panel(trace), trace.name ?? "", trace.x[column], trace.y[row], value, "", "", ""])));
      continue;
    }
    (trace.x ?? []).forEach((x, index) => {
      if (x === null) return;
      const y = trace.y[index], bars = trace.error_x ?? trace.error_y, middle = trace.error_x ? x : y;
      const low = bars && middle - at(bars.arrayminus ?? bars.array, index), high = bars && middle + at(bars.array, index);
      rows.push([panel(trace), trace.name ?? "", x, y, "", low ?? "", high ?? "", about(trace, index)]);
    });
  }
  const names = { "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'", "&amp;": "&" };
  const plain = (value) => String(value).replaceAll("<br>", " ").replaceAll(/<[^>]*>/g, "")
    .replaceAll(/&(lt|gt|quot|#x27|amp);/g, (entity) => names[entity]).replace(/^(?=[=@])/, "'");  // a spreadsheet would run it
  return rows.map((row) => row.map((value) => `"${plain(value).replaceAll('"', '""')}"`).join(",")).join("\n") + "\n";
}
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-figure]");
  if (!link) return;
  const figure = page.figures.find((other) => other.name === link.dataset.figure);
  URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(new Blob([tableOf(figure)], { type: "text/csv" }));
});

// The table of trials: sort by a column, show the rows that contain all the words.
const trials = document.getElementById("trials"), filter = document.getElementById("trials-filter");
function sortTrials(header) {
  const ascending = header.getAttribute("aria-sort") !== "ascending", column = header.cellIndex;
  for (const other of trials.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const compare = (one, two) => {
    const [a, b] = [key(one), key(two)];
    if (a === "" || b === "") return (a === "") - (b === "");  // empty cells come last, either way
    const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
    return ascending ? order : -order;
  };
  trials.tBodies[0].append(...[...trials.tBodies[0].rows].sort(compare));
}
function filterTrials() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean), rows = [...trials.tBodies[0].rows];
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("trials-count").textContent = `${shown} of ${rows.length} trials`;
}
if (trials) {
  for (const header of trials.tHead.rows[0].cells) header.firstChild.addEventListener("click", () => sortTrials(header));
  filter.addEventListener("input", filterTrials);
}
