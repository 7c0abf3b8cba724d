// Charts: a figure with a drawing, a legend, what is below the pointer, and the same as a table.

import { at, badge, h } from "./dom.js";
import { number } from "./format.js";
import { drawBars, drawLines, sample } from "./svg.js";

const TABLE_ROWS = 12;
const TOLD = 10; // lines that are told below the pointer, and to screen readers
const charts = new Map();

// A figure for one chart inside `parent`, made when it is first drawn.
function figure(parent, spec) {
  const plot = h("div", { class: "plot", role: "img", id: `plot-${spec.id}` });
  const legend = h("ul", { class: "legend", "aria-hidden": "true" });
  const empty = h("p", { class: "empty" });
  const table = h("table", { class: "plain" });
  const details = h("details", {}, h("summary", {}, "As a table"),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${spec.title}: table` },
      table));
  const mark = spec.origin ? badge(spec.origin) : null;
  const title = h("h2", {}, spec.title);
  at(parent).append(h("figure", { class: "card" }, h("figcaption", {}, title, " ", mark), legend,
    plot, empty, details));
  const chart = { plot, legend, empty, table, details, title, mark, spec };
  details.addEventListener("toggle", () => fillTable(chart));
  // Also when its tab is shown: a chart that is hidden has no width, and is not drawn.
  new ResizeObserver(() => {
    if (plot.clientWidth !== chart.width) render(chart);
  }).observe(plot);
  plot.addEventListener("pointermove", (event) => point(chart, event));
  plot.addEventListener("pointerleave", () => point(chart, null));
  charts.set(spec.id, chart);
  return chart;
}

// spec: {id, title, origin, x, y, empty, lines}; options: bars, fromZero, log, height.
// A line: {name, x, y}; options: slot (its colour), dash, mode (markers, lines+markers),
// band {low, high, name}, range [[low, high], ...] of each point, quiet.
export function draw(parent, spec) {
  const chart = charts.get(spec.id) ?? figure(parent, spec);
  const nothing = !spec.lines.some((line) => line.x.length);
  chart.title.textContent = spec.title;
  chart.empty.textContent = spec.empty ?? "unknown";
  chart.empty.hidden = !nothing;
  for (const part of [chart.plot, chart.legend, chart.details]) part.hidden = nothing;
  if (chart.mark) chart.mark.hidden = nothing;
  const state = nothing ? "" : signature(spec);
  if (chart.state === state) return;
  chart.state = state;
  chart.spec = spec;
  if (nothing) return;
  chart.plot.setAttribute("aria-label", summary(spec));
  chart.legend.replaceChildren(...keys(spec));
  fillTable(chart);
  render(chart);
}

// What a drawing depends on: the same again is not drawn again.
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
  const told = lines.slice(0, TOLD).filter((line) => line.x.length).flatMap((line) => (bars
    ? line.y.map((name, i) => `${name}: ${line.text[i]}`)
    : [`${line.name}: ${number(line.y.at(-1))} at ${number(line.x.at(-1), 6)}`]));
  const more = lines.length > TOLD ? `; and ${lines.length - TOLD} more` : "";
  return `${title}. ${told.join("; ")}${more}`;
}

function keys({ lines, bars }) {
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
    h("caption", {}, `${spec.title}: up to ${TABLE_ROWS} figures of each line`),
    h("thead", {}, h("tr", {}, ...names.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, ...rows.map(([name, ...figures]) => h("tr", {},
      h("th", { scope: "row" }, name), ...figures.map((figure) => h("td", {}, figure))))),
  );
}

// Tells the values at the pointer.
function point({ plot, spec, view }, event) {
  plot.querySelector(".tip")?.remove();
  plot.querySelector(".rule")?.remove();
  if (!event || !view?.drawn) return;
  const box = plot.getBoundingClientRect();
  const x = event.clientX - box.left;
  const { left, right, top, bottom } = view.area;
  if (x < left - 5 || x > right + 5) return;
  const found = spec.lines.flatMap((line, index) => {
    if (!line.x.length) return [];
    const i = nearest(view.drawn[index], x);
    return [{ line, index, i, away: Math.abs(view.drawn[index][i] - x) }];
  });
  const first = found.reduce((best, one) => (one.away < best.away ? one : best));
  const at = view.drawn[first.index][first.i];
  const told = found.filter((one) => one.away < 30).slice(0, TOLD);
  const tip = h("div", { class: "tip" },
    h("b", {}, `${spec.x}: ${number(first.line.x[first.i], 6)}`),
    ...told.map(({ line, index, i }) =>
      h("div", {}, sample(line, index), `${line.name}: ${number(line.y[i], 4)}`)));
  const rule = h("div", { class: "rule" });
  Object.assign(rule.style, { left: `${at}px`, top: `${top}px`, height: `${bottom - top}px` });
  Object.assign(tip.style, at < box.width / 2 ? { left: `${at + 12}px` }
    : { right: `${box.width - at + 12}px` });
  plot.append(rule, tip);
}

// The index of the value nearest to `x`; values don't decrease.
function nearest(values, x) {
  let [low, high] = [0, values.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] < x) low = middle;
    else high = middle;
  }
  return x - values[low] < values[high] - x ? low : high;
}
