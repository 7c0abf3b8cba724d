// Charts: Plotly draws them; a table of the same figures is there for those who can't see them.

import { at, badge, h, paused } from "./dom.js";
import { number } from "./format.js";

const COLOURS = 8;
const TABLE_ROWS = 12;
const charts = new Map();
let plotly = null;

// Loaded once the page stands: it is the largest thing of all.
export function loadPlotly() {
  plotly ??= new Promise((resolve, reject) => {
    const script = h("script", { src: "static/plotly.min.js", async: true });
    script.addEventListener("load", () => resolve(window.Plotly));
    script.addEventListener("error", () => {
      plotly = null;
      reject(new Error("The charts' program can't be loaded."));
    });
    document.head.append(script);
  });
  return plotly;
}

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const colour = (index) => style(`--line-${index % COLOURS}`);
export const quiet = () => style("--quiet");

function translucent(hex) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return `rgba(${r},${g},${b},0.18)`;
}

function layout(spec) {
  const axis = { gridcolor: style("--grid"), zeroline: false, linecolor: style("--line"),
    automargin: true, ticks: "outside", tickcolor: style("--line"), title: { standoff: 8 } };
  const small = window.innerWidth < 600;
  return {
    autosize: true,
    height: spec.height ?? (small ? 260 : 300),
    margin: { l: 48, r: 12, t: 8, b: 40 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: style("--quiet") },
    hoverlabel: { bgcolor: style("--card"), bordercolor: style("--line"),
      font: { color: style("--ink"), size: 12 }, namelength: -1 },
    hovermode: spec.bars ? "closest" : "x unified",
    showlegend: spec.lines.filter((line) => line.legend !== false).length > 1 && !spec.bars,
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: style("--ink") } },
    xaxis: { ...axis, title: { ...axis.title, text: spec.x }, type: spec.logX ? "log" : "linear",
      rangemode: spec.bars ? "tozero" : "normal", ...spec.xaxis },
    yaxis: { ...axis, title: { ...axis.title, text: spec.bars ? "" : spec.y },
      type: spec.logY ? "log" : undefined, rangemode: spec.fromZero ? "tozero" : "normal",
      ...spec.yaxis },
    uirevision: spec.title, // a zoom outlives new data
    transition: { duration: 0 },
  };
}

function traces(spec) {
  return spec.lines.flatMap((line, index) => {
    const ink = line.colour ?? colour(line.slot ?? index);
    if (spec.bars) {
      return [{ type: "bar", orientation: "h", x: line.x, y: line.y, marker: { color: ink },
        error_x: line.error && { ...line.error, color: style("--ink"), thickness: 1.2, width: 4 },
        hovertemplate: "%{y}: %{x:.4g}<extra></extra>" }];
    }
    const drawn = {
      type: "scatter", name: line.name, x: line.x, y: line.y, mode: line.mode ?? "lines",
      line: { color: ink, width: line.width ?? 1.8, dash: line.dash },
      marker: { color: ink, size: 8, symbol: line.symbol },
      error_y: line.error && { ...line.error, color: ink, thickness: 1.5, width: 5 },
      showlegend: line.legend !== false,
      hovertemplate: "%{y:.4g}",
    };
    if (!line.band) return [drawn];
    const edge = { type: "scatter", x: line.x, mode: "lines", line: { width: 0 },
      hoverinfo: "skip", showlegend: false };
    return [
      { ...edge, y: line.band.low },
      { ...edge, y: line.band.high, fill: "tonexty", fillcolor: translucent(ink),
        name: line.band.name, showlegend: true },
      drawn,
    ];
  });
}

// A figure for one chart inside `parent`, made when it is first drawn.
function figure(parent, spec) {
  let chart = charts.get(spec.id);
  if (chart) return chart;
  const plot = h("div", { class: "plot", role: "img", id: `plot-${spec.id}` });
  const empty = h("p", { class: "empty" });
  const table = h("table", { class: "plain" });
  const details = h("details", {}, h("summary", {}, "As a table"),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${spec.title}: table` },
      table));
  const mark = spec.origin ? badge(spec.origin) : null;
  const title = h("h2", {}, spec.title);
  const element = h("figure", { class: "card" }, h("figcaption", {}, title, " ", mark), plot, empty,
    details);
  at(parent).append(element);
  chart = { plot, empty, table, details, title, mark, spec };
  details.addEventListener("toggle", () => fillTable(chart));
  charts.set(spec.id, chart);
  return chart;
}

function fillTable({ table, details, spec }) {
  if (!details.open) return;
  const rows = spec.lines.flatMap((line) => {
    const every = Math.max(1, Math.ceil(line.x.length / TABLE_ROWS));
    return line.x.map((x, i) => [line, i, x])
      .filter(([, i]) => i % every === 0 || i === line.x.length - 1);
  });
  const show = (value) => (typeof value === "number" ? number(value, 4) : value);
  const names = spec.bars ? ["", spec.x] : ["", spec.x, spec.y];
  table.replaceChildren(
    h("caption", {}, `${spec.title}: up to ${TABLE_ROWS} figures of each line`),
    h("thead", {}, h("tr", {}, ...names.map((name) => h("th", { scope: "col" }, name || "Line")))),
    h("tbody", {}, ...rows.map(([line, i, x]) => (spec.bars
      ? h("tr", {}, h("th", { scope: "row" }, line.y[i]), h("td", {}, show(x)))
      : h("tr", {}, h("th", { scope: "row" }, line.name), h("td", {}, show(x)),
        h("td", {}, show(line.y[i])))))),
  );
}

// What a drawing depends on: the same again need not be drawn again, which takes its time.
function signature(spec) {
  const lines = spec.lines.map((line) => [line.name, line.slot, line.dash, line.x.length,
    line.x.at(-1), line.y.at(-1), line.y.reduce((sum, y) => sum + (y || 0), 0),
    line.x.reduce((sum, x) => sum + (x || 0), 0), line.band && [line.band.low, line.band.high]]);
  return JSON.stringify([spec.title, spec.x, spec.y, spec.logX, lines, window.innerWidth < 600,
    style("--ink")]);
}

// spec: {id, title, origin, x, y, lines: [{name, x, y, slot, dash, mode, band, error}], empty}
export async function draw(parent, spec) {
  const chart = figure(parent, spec);
  chart.spec = spec;
  const nothing = !spec.lines.some((line) => line.x.length);
  chart.empty.textContent = spec.empty ?? "unknown";
  chart.empty.hidden = !nothing;
  chart.plot.hidden = nothing;
  chart.details.hidden = nothing;
  chart.title.textContent = spec.title;
  if (chart.mark) chart.mark.hidden = nothing;
  if (nothing) return;
  const shown = spec.lines.slice(0, 6).map((line) => {
    const [x, y] = [line.x.at(-1), line.y.at(-1)].map((v) => (typeof v === "number" ? number(v) : v));
    return spec.bars ? "" : `${line.name}: ${y} at ${x}`;
  });
  chart.plot.setAttribute("aria-label", `${spec.title}. ${shown.filter(Boolean).join("; ")}`);
  fillTable(chart);
  const state = signature(spec);
  if (chart.state === state) return;
  const Plotly = await loadPlotly();
  if (chart.spec !== spec || !chart.plot.offsetParent) return; // overtaken, or its tab was left
  const config = { displaylogo: false, responsive: true, displayModeBar: false };
  await Plotly.react(chart.plot, traces(spec), layout(spec), config);
  chart.state = state;
}

function redraw() {
  for (const [, chart] of charts) {
    if (chart.plot.offsetParent) draw(null, chart.spec);
  }
}

window.addEventListener("resize", paused(redraw));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
