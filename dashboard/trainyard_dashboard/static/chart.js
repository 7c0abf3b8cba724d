// Charts drawn as SVG: the bars of the Cost tab, and the speedup with its interval.

import { number } from "./format.js";
import { createFigure, updateFigure } from "./figure.js";
import { drawBars, drawLines } from "./svg.js";

const charts = new Map();
const exact = (value) => number(value, 4);

// Draws a chart, or updates it.
// spec: {id, title, origin, x, y, empty, lines}; optional: bars, fromZero, log, height.
// A line: {name, x, y, style: {colour, dash}}; optional: markers instead of a line,
// band {low, high, name}, range [[low, high], ...] of each point, quiet.
export function draw(parent, spec) {
  const figure = charts.get(spec.id) ?? create(parent, spec);
  const state = JSON.stringify(spec);
  if (figure.state === state) return;
  figure.state = state;
  if (updateFigure(figure, { showX: (value) => number(value, 6), showY: exact, ...spec })) {
    render(figure);
  }
}

function create(parent, spec) {
  const figure = createFigure(parent, spec);
  // Also when its tab is shown: a hidden chart has no width and is not drawn.
  new ResizeObserver(() => {
    if (figure.plot.clientWidth !== figure.width) render(figure);
  }).observe(figure.plot);
  charts.set(spec.id, figure);
  return figure;
}

function render(figure) {
  const { plot, spec } = figure;
  figure.width = plot.clientWidth;
  if (!figure.width) return;
  const height = spec.height ?? (figure.width < 480 ? 240 : 290);
  plot.replaceChildren(spec.bars ? drawBars(spec, figure.width)
    : drawLines(spec, figure.width, height));
}
