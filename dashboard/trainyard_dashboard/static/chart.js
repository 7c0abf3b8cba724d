// A chart: a figure with a plot, a legend, a tooltip, and its values as a table.

import { at, badge, h } from "./dom.js";
import { number } from "./format.js";
import { drawBars, drawLines, sample } from "./svg.js";

const TABLE_ROWS = 12;
const MAX_LABELLED = 10; // lines in the tooltip and in the text for screen readers
const charts = new Map();

// Creates the figure of one chart inside `parent`.
function createFigure(parent, spec) {
  const plot = h("div", { class: "plot", role: "img", id: `plot-${spec.id}` });
  const legend = h("ul", { class: "legend", "aria-hidden": "true" });
  const empty = h("p", { class: "empty" });
  const table = h("table", { class: "plain" });
  const details = h("details", {}, h("summary", {}, "Show as table"),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${spec.title}: table` },
      table));
  const mark = spec.origin ? badge(spec.origin) : null;
  const title = h("h2", {}, spec.title);
  at(parent).append(h("figure", { class: "card" }, h("figcaption", {}, title, " ", mark), legend,
    plot, empty, details));
  const chart = { plot, legend, empty, table, details, title, mark, spec };
  details.addEventListener("toggle", () => fillTable(chart));
  // Also when its tab is shown: a hidden chart has no width and is not drawn.
  new ResizeObserver(() => {
    if (plot.clientWidth !== chart.width) render(chart);
  }).observe(plot);
  plot.addEventListener("pointermove", (event) => showTooltip(chart, event));
  plot.addEventListener("pointerleave", () => showTooltip(chart, null));
  charts.set(spec.id, chart);
  return chart;
}

// Draws a chart, or updates it.
// spec: {id, title, origin, x, y, empty, lines}; optional: bars, fromZero, log, height.
// A line: {name, x, y}; optional: slot (index of its colour), dash, mode (markers, lines+markers),
// band {low, high, name}, range [[low, high], ...] of each point, quiet.
export function draw(parent, spec) {
  const chart = charts.get(spec.id) ?? createFigure(parent, spec);
  const isEmpty = !spec.lines.some((line) => line.x.length);
  chart.title.textContent = spec.title;
  chart.empty.textContent = spec.empty ?? "unknown";
  chart.empty.hidden = !isEmpty;
  for (const part of [chart.plot, chart.legend, chart.details]) part.hidden = isEmpty;
  if (chart.mark) chart.mark.hidden = isEmpty;
  const state = isEmpty ? "" : signature(spec);
  if (chart.state === state) return;
  chart.state = state;
  chart.spec = spec;
  if (isEmpty) return;
  chart.plot.setAttribute("aria-label", summary(spec));
  chart.legend.replaceChildren(...legendEntries(spec));
  fillTable(chart);
  render(chart);
}

// Everything a drawing depends on, so that unchanged data is not drawn again.
function signature({ title, x, y, log, lines }) {
  const sum = (values) => values.reduce((total, value) => total + (Number(value) || 0), 0);
  return JSON.stringify([title, x, y, log, lines.map((line) => [line.name, line.slot, line.dash,
    line.x.length, line.x.at(-1), line.y.at(-1), sum(line.x), sum(line.y),
    line.band && [sum(line.band.low), sum(line.band.high)]])]);
}

function render(chart) {
  const { plot, spec } = chart;
  chart.width = plot.clientWidth;
  if (!chart.width) return;
  const height = spec.height ?? (chart.width < 480 ? 240 : 290);
  chart.view = spec.bars ? { svg: drawBars(spec, chart.width) }
    : drawLines(spec, chart.width, height);
  plot.replaceChildren(chart.view.svg);
}

function summary({ title, lines, bars }) {
  const values = lines.slice(0, MAX_LABELLED).filter((line) => line.x.length).flatMap((line) => (bars
    ? line.y.map((name, i) => `${name}: ${line.text[i]}`)
    : [`${line.name}: ${number(line.y.at(-1))} at ${number(line.x.at(-1), 6)}`]));
  const more = lines.length > MAX_LABELLED ? `; and ${lines.length - MAX_LABELLED} more` : "";
  return `${title}. ${values.join("; ")}${more}`;
}

function legendEntries({ lines, bars }) {
  if (bars || (lines.length === 1 && !lines[0].band)) return [];
  return lines.slice(0, 24).flatMap((line, index) => [
    h("li", {}, sample(line, index), line.name),
    ...(line.band ? [h("li", {}, h("span", { class: `shade back-${(line.slot ?? index) % 8}` }),
      line.band.name)] : []),
  ]);
}

function fillTable({ table, details, spec }) {
  if (!details.open) return;
  const rows = spec.lines.flatMap((line) => {
    const every = Math.max(1, Math.ceil(line.x.length / TABLE_ROWS));
    return [...line.x.keys()].filter((i) => i % every === 0 || i === line.x.length - 1)
      .map((i) => (spec.bars ? [line.y[i], line.text[i]]
        : [line.name, number(line.x[i], 6), number(line.y[i], 4)]));
  });
  const names = spec.bars ? ["Name", spec.x] : ["Line", spec.x, spec.y];
  table.replaceChildren(
    h("caption", {}, `${spec.title}: up to ${TABLE_ROWS} values of each line`),
    h("thead", {}, h("tr", {}, ...names.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, ...rows.map(([name, ...figures]) => h("tr", {},
      h("th", { scope: "row" }, name), ...figures.map((figure) => h("td", {}, figure))))),
  );
}

// Shows the values at the pointer, or hides the tooltip if there is no event.
function showTooltip({ plot, spec, view }, event) {
  plot.querySelector(".tip")?.remove();
  plot.querySelector(".rule")?.remove();
  if (!event || !view?.drawn) return;
  const box = plot.getBoundingClientRect();
  const x = event.clientX - box.left;
  const { left, right, top, bottom } = view.area;
  if (x < left - 5 || x > right + 5) return;
  const nearby = spec.lines.flatMap((line, index) => {
    if (!line.x.length) return [];
    const i = nearest(view.drawn[index], x);
    return [{ line, index, i, distance: Math.abs(view.drawn[index][i] - x) }];
  });
  const first = nearby.reduce((best, one) => (one.distance < best.distance ? one : best));
  const at = view.drawn[first.index][first.i];
  const shown = nearby.filter((one) => one.distance < 30).slice(0, MAX_LABELLED);
  const tip = h("div", { class: "tip" },
    h("b", {}, `${spec.x}: ${number(first.line.x[first.i], 6)}`),
    ...shown.map(({ line, index, i }) =>
      h("div", {}, sample(line, index), `${line.name}: ${number(line.y[i], 4)}`)));
  const rule = h("div", { class: "rule" });
  Object.assign(rule.style, { left: `${at}px`, top: `${top}px`, height: `${bottom - top}px` });
  Object.assign(tip.style, at < box.width / 2 ? { left: `${at + 12}px` }
    : { right: `${box.width - at + 12}px` });
  plot.append(rule, tip);
}

// The index of the value closest to `x`; values must not decrease.
function nearest(values, x) {
  let [low, high] = [0, values.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] < x) low = middle;
    else high = middle;
  }
  return x - values[low] < values[high] - x ? low : high;
}
