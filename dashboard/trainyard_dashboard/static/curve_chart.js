// Charts of curves: drawn by uPlot, with values at the pointer, zoom, and axes as in view.js.

import { firstAtLeast, extent, nearest, padded, shownRange, smooth } from "./curve_math.js";
import { h, setText } from "./dom.js";
import { createFigure, updateFigure } from "./figure.js";
import { count, number } from "./format.js";
import { change, view, zoom } from "./view.js";
import { sample } from "./svg.js";

const SPACE = 80; // pixels between marks of the x axis
const MAX_IN_TIP = 16; // lines; those closest to the pointer
const NARROW = 480; // pixels; a smaller chart is lower, and has half as many lines in its tip
const FEW = 40; // points of a line that are also drawn as dots
const NEAR = 30; // pixels between the pointer and a line's first or last point
const LINEAR = 1; // uPlot's numbers for distributions
const LOGARITHMIC = 3;
const TIMES = [1e-3, 0.01, 0.1, 0.5, 1, 2, 5, 10, 15, 30, // seconds between marks
  ...[1, 2, 5, 10, 15, 30].map((minutes) => minutes * 60),
  ...[1, 2, 3, 6, 12, 24, 48, 168, 720].map((hours) => hours * 3600)];
const SIZES = [...Array(50).keys()].map((power) => 2 ** power); // bytes between marks
const FONT = "12px system-ui, sans-serif";
const charts = new Map();
const dark = matchMedia("(prefers-color-scheme: dark)");

// Draws a chart of curves, or updates it.
// spec: {id, title, x, y, showX, showY, fromZero, empty, notes, lines}.
// A line: {name, x, y, style: {colour, dash}}; x increases. Returns the chart's element.
export function drawCurves(parent, spec) {
  const chart = charts.get(spec.id) ?? create(parent, spec);
  chart.asked = spec;
  chart.element.hidden = false;
  const content = signature(spec);
  const state = JSON.stringify([view, content]);
  if (chart.state === state) return chart.element;
  chart.state = state;
  if (chart.content !== content) {
    chart.content = content;
    chart.lines = spec.lines.map((line) => visible(line)).filter((line) => line.x.length);
    chart.unit = view.x;
    chart.extent = extent(chart.lines.flatMap((line) => [line.x[0], line.x.at(-1)]));
    chart.dataState = "";
  }
  const { lines } = chart;
  const outside = spec.lines.reduce((total, line) => total + line.x.length, 0)
    - lines.reduce((total, line) => total + line.x.length, 0);
  chart.range = yRange(lines);
  if (lines.length) align(chart);
  const notes = [...(spec.notes ?? []), ...notDrawn(outside, chart.range)];
  if (updateFigure(chart, { ...spec, lines, notes })) render(chart);
  else clear(chart);
  return chart.element;
}

// What the lines depend on, without every point, so that unchanged data is not drawn again.
function signature({ title, notes, lines }) {
  return JSON.stringify([view.x, view.logX, view.logY, title, notes,
    lines.map(({ name, style, x, y }) => [name, style, x.length, x[0], x.at(-1), y.at(-1),
      y.reduce((total, value) => total + value, 0)])]);
}

export function hideCurves(id) {
  const chart = charts.get(id);
  if (chart) chart.element.hidden = true;
}

// Changes the part of the x axis in view, which is a part of what the visible charts show.
export function zoomCurves(action) {
  const visibleCharts = [...charts.values()].filter(({ element, unit }) =>
    element.offsetParent && unit === view.x);
  zoom(action, extent(visibleCharts.flatMap((chart) => chart.extent ?? [])));
}

function create(parent, spec) {
  const chart = createFigure(parent, spec);
  chart.tip = h("div", { class: "tip", hidden: true });
  chart.said = h("p", { class: "hidden", "aria-live": "polite" });
  chart.plot.after(chart.said);
  chart.plot.tabIndex = 0;
  chart.plot.addEventListener("keydown", (event) => onKey(chart, event));
  // Also when its tab is shown: a hidden chart has no width and is not drawn.
  new ResizeObserver(() => {
    const width = chart.plot.clientWidth;
    if (!width) chart.width = 0; // hidden, and not told of changes of the view
    // Curves over another unit than the present one: those over this one are on their way.
    if (!width || width === chart.width || chart.unit !== view.x) return;
    drawCurves(parent, chart.asked);
    if (width !== chart.width) render(chart);
  }).observe(chart.plot);
  charts.set(spec.id, chart);
  return chart;
}

// Without the points that a logarithmic axis has no place for.
function visible(line) {
  if (!view.logX && !view.logY) return line;
  const kept = [...line.x.keys()].filter((i) => (!view.logX || line.x[i] > 0)
    && (!view.logY || line.y[i] > 0));
  return { ...line, x: kept.map((i) => line.x[i]), y: kept.map((i) => line.y[i]) };
}

function yRange(lines) {
  return shownRange(lines.flatMap(({ x, y }) => inView(x, y)), view.outliers);
}

// The points of the part in view and those next to it: the lines to them are seen, too.
function inView(x, y) {
  const [from, to] = view.range ?? [-Infinity, Infinity];
  return y.slice(Math.max(0, firstAtLeast(x, from) - 1), firstAtLeast(x, to) + 1);
}

function notDrawn(outside, range) {
  const notes = [];
  if (outside) notes.push(`${count(outside, "point")} at or below 0 have no place on a logarithmic axis.`);
  if (range?.outside) {
    notes.push(`${count(range.outside, "outlier")} beyond the axis, which ends at`
      + ` ${number(range.low, 4)} and ${number(range.high, 4)}.`);
  }
  return notes;
}

function render(chart) {
  const { plot, lines, spec } = chart;
  chart.width = plot.clientWidth;
  if (!chart.width || !lines?.length) return;
  const size = { width: chart.width, height: chart.width < NARROW ? 240 : 290 };
  // What uPlot can't change once it is there. All else, such as the range, it asks for anew.
  const structure = JSON.stringify([chart.columns, view.x, view.logX, view.logY, spec.x, spec.y,
    dark.matches, lines.map((line) => [line.style, line.x.length > FEW, line.x.length === 1])]);
  if (chart.structure === structure) {
    const { width, height } = chart.uplot;
    if (width !== size.width || height !== size.height) chart.uplot.setSize(size);
    chart.uplot.setData(chart.data); // keeps the pointer where it is
    return;
  }
  clear(chart);
  chart.structure = structure;
  chart.uplot = new uPlot({ ...size, ...options(chart) }, chart.data, plot);
  chart.uplot.over.append(chart.tip);
  plot.uplot = chart.uplot;
}

function clear(chart) {
  chart.uplot?.destroy();
  chart.uplot = null;
  chart.structure = "";
}

// One column of x for all lines. Each line has its points, and if they are smoothed, the result.
function align(chart) {
  const { lines, range } = chart;
  const limits = range?.outside ? [range.low, range.high] : undefined;
  const state = JSON.stringify(view.smoothing ? [view.smoothing, limits] : []);
  if (chart.dataState !== state) { // else only the range in view is another one
    chart.dataState = state;
    chart.columns = view.smoothing ? 2 : 1; // of each line
    chart.smoothed = view.smoothing ? lines.map(({ y }) => smooth(y, view.smoothing, limits)) : [];
    chart.data = uPlot.join(lines.map(({ x, y }, i) => [x, y, chart.smoothed[i]].filter(Boolean)));
  }
  if (!range || range.outside) return; // without outliers, what is smoothed stays within the range
  // What is smoothed lags behind: where a curve falls, it lies above.
  const ends = extent(chart.smoothed.flatMap((y, i) => inView(lines[i].x, y)));
  if (ends) Object.assign(range, { low: Math.min(range.low, ends[0]), high: Math.max(range.high, ends[1]) });
}

function options(chart) {
  const css = getComputedStyle(document.documentElement);
  const colour = (name) => css.getPropertyValue(name).trim();
  const series = chart.lines.flatMap((line) => {
    const stroke = colour(`--line-${line.style.colour}`);
    const one = { label: line.name, stroke, width: 1.8, dash: line.style.dash,
      points: { show: line.x.length <= FEW, size: line.x.length === 1 ? 9 : 5, fill: stroke } };
    return chart.columns === 2 ? [{ ...one, label: `${line.name}, raw`, alpha: 0.3, width: 1, dash: [] },
      { ...one, points: { ...one.points, show: line.x.length === 1 } }] : [one];
  });
  const axis = { stroke: colour("--quiet"), font: FONT, labelFont: FONT, labelSize: 20,
    grid: { stroke: colour("--grid"), width: 1 }, ticks: { stroke: colour("--grid"), width: 1, size: 5 } };
  const shown = (show) => (_, values) => values.map((value) => (value === null ? "" : show(value)));
  const { spec } = chart;
  return {
    legend: { show: false },
    series: [{}, ...series],
    scales: {
      x: { time: false, distr: view.logX ? LOGARITHMIC : LINEAR,
        range: (_, low, high) => xLimits(low, high) },
      y: { distr: view.logY ? LOGARITHMIC : LINEAR, range: () => yLimits(chart) },
    },
    axes: [
      { ...axis, label: spec.x, size: 34, space: SPACE, values: shown(spec.showX),
        ...(view.logX ? { filter: labelled } : {}),
        ...(view.x === "seconds" && !view.logX ? { incrs: TIMES } : {}) },
      { ...axis, label: spec.y, space: 34, ...(spec.y === "Bytes" ? { incrs: SIZES } : {}), values: shown(spec.showY),
        size: (_, values) => 18 + 7 * Math.max(3, ...(values ?? []).map((text) => text.length)) },
    ],
    cursor: {
      y: false,
      sync: { key: "curves", scales: ["x", null], setSeries: false },
      drag: { x: true, y: false, setScale: false },
      focus: { prox: 24 },
      points: { size: 7 },
      dataIdx: (u, index, hovered, at) => (index === 0 ? hovered
        : index % chart.columns ? null // a raw one, beside what it was smoothed to
        : closest(u, chart.lines[Math.floor((index - 1) / chart.columns)], at)),
      bind: { dblclick: () => () => zoomCurves("reset") },
    },
    focus: { alpha: 0.35 },
    hooks: {
      setCursor: [() => showTip(chart)],
      setSeries: [(_, index) => { chart.focused = index; showTip(chart); }],
      setSelect: [(u) => zoomTo(chart, u)],
    },
  };
}

// `low` and `high` are those of the lines. A range may have been chosen on another kind of axis:
// marks from 0 on a logarithmic one are endless.
function xLimits(low, high) {
  if (!view.range) return low === high ? padded([low, high], 0, false) : [low, high];
  const [from, to] = view.range;
  if (!view.logX || from > 0) return view.range;
  return low < to ? [low, to] : [low, high];
}

// The marks of a logarithmic x axis that have room for a label. uPlot's own choice is right on y
// axes only: on this one it labels powers of 10, of which a short range may have none.
function labelled(u, marks) {
  const decade = Math.abs(u.valToPos(10, "x") - u.valToPos(1, "x"));
  const digits = decade * Math.log10(10 / 9) >= SPACE ? /^/
    : decade * Math.log10(2) >= SPACE ? /^[125]/ : /^1/;
  return marks.map((mark) => (digits.test(mark.toExponential(3)) ? mark : null));
}

function yLimits({ range, spec }) {
  if (!range) return [view.logY ? 1 : 0, view.logY ? 10 : 1];
  const low = spec.fromZero && !view.logY ? Math.min(0, range.low) : range.low;
  const limits = padded([low, range.high], 0.05, view.logY);
  return [spec.fromZero && low === 0 ? 0 : limits[0], limits[1]];
}

// The index, among all values of x, of the line's point closest to `at`; null if it is not near.
function closest(u, { x }, at) {
  const point = x[nearest(x, at)];
  if ((at < x[0] || at > x.at(-1))
    && Math.abs(u.valToPos(point, "x") - u.valToPos(at, "x")) > NEAR) return null;
  return firstAtLeast(u.data[0], point);
}

function zoomTo(chart, u) {
  const { left, width } = u.select;
  if (width < 5) return;
  u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  if (chart.unit !== view.x) return; // the axis was changed a moment ago
  change({ range: [u.posToVal(left, "x"), u.posToVal(left + width, "x")] });
}

// Arrow keys move from point to point; + and - zoom, 0 and Escape show everything again.
function onKey(chart, event) {
  const u = chart.uplot;
  const zooms = { "+": "in", "-": "out", 0: "reset", Escape: "reset" };
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  if (!u || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in zooms) {
    zoomCurves(zooms[event.key]);
  } else if (event.key in steps) {
    const { min, max } = u.scales.x;
    const [first, last] = [firstAtLeast(u.data[0], min), firstAtLeast(u.data[0], max)];
    const present = u.cursor.idx ?? (event.key === "ArrowLeft" ? last : first - 1);
    const index = Math.min(last, u.data[0].length - 1, Math.max(first, present + steps[event.key]));
    u.setCursor({ left: u.valToPos(u.data[0][index], "x"), top: u.over.clientHeight / 2 });
    setText(chart.said, chart.tip.hidden ? "" : [...chart.tip.children]
      .map((row) => row.textContent).join("; "));
  } else return;
  event.preventDefault();
}

// Shows the values of all lines at the pointer, in every chart at once.
function showTip(chart) {
  const { uplot: u, tip, lines, spec } = chart;
  if (!u || tip.parentNode !== u.over) return;
  const { left, top, idxs, idx } = u.cursor;
  const isNarrow = chart.width < NARROW;
  const found = left < 0 || idx === null ? [] : lines.flatMap((line, i) => {
    const column = (i + 1) * chart.columns;
    const at = idxs[column];
    if (at === null || at === undefined) return [];
    const value = u.data[column][at];
    if (value === undefined) return [];
    const raw = chart.columns === 2 && !isNarrow ? ` (raw ${spec.showY(u.data[column - 1][at])})` : "";
    return [{ line, value, text: spec.showY(value) + raw, focused: column === chart.focused,
      distance: Math.abs(u.valToPos(value, "y") - (top ?? 0)) }];
  });
  tip.hidden = found.length === 0;
  if (tip.hidden) return;
  const near = [...found].sort((a, b) => a.distance - b.distance).slice(0, MAX_IN_TIP / (isNarrow ? 2 : 1))
    .sort((a, b) => b.value - a.value);
  const more = found.length - near.length;
  tip.replaceChildren(
    h("b", {}, `${spec.x}: ${spec.showX(u.data[0][idx])}`),
    ...near.map(({ line, text, focused }) => h("div", { class: focused ? "focused" : null },
      sample(line), `${line.name}: ${text}`)),
    more > 0 ? h("div", {}, `and ${more} farther away`) : "",
  );
  const middle = u.over.clientWidth / 2;
  Object.assign(tip.style, left < middle ? { left: `${left + 14}px`, right: "auto" }
    : { left: "auto", right: `${u.over.clientWidth - left + 14}px` });
}

dark.addEventListener("change", () => {
  for (const chart of charts.values()) render(chart);
});
