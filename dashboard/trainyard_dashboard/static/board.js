// A board of charts: what they show and how, and one chart for each chosen metric.

import { drawCurves, hideCurves, zoomCurves } from "./curve_chart.js";
import { at, h, onceAFrame, setText } from "./dom.js";
import { available, isLoaded, linesOf, load, showX, xName } from "./history.js";
import { describe, inOrder } from "./metrics.js";
import { selected } from "./runs.js";
import { AXES, change, onView, OUTLIERS, view } from "./view.js";

const NO_RUN = "Select a run in the table of runs to see its curves.";
const ZOOMS = [["earlier", "←", "Earlier"], ["later", "→", "Later"], ["in", "+", "Zoom in"],
  ["out", "−", "Zoom out"], ["reset", "Reset", "Reset zoom"]];

// A board in the element `id`. `isDefault(metric, evaluation)` tells which metrics are shown unless
// somebody chooses others; those of `asked` are requested, though no run has said that it has them.
export function createBoard(id, { isDefault, asked }) {
  const box = at(id);
  const choices = new Map(); // true or false, by metric; what was chosen by hand
  const chooser = h("fieldset", { class: "metrics" }, h("legend", {}, "Metrics"));
  const summary = h("summary", {}, "Metrics");
  const grid = h("div", { class: "charts", id: `${id}-grid` });
  const empty = h("p", { class: "empty card", hidden: true });
  box.append(toolbar(h("details", { class: "chooser" }, summary, chooser)), grid, empty);
  const drawn = new Set();
  let isReady = false; // the first answer is here
  onView(onceAFrame(() => { if (box.offsetParent && isReady) redraw(); }));

  const isShown = (metric, evaluation) => choices.get(metric) ?? isDefault(metric, evaluation);
  const shown = ({ metrics, evaluation }) =>
    inOrder([...metrics].filter((metric) => isShown(metric, evaluation)), evaluation);

  // Requests what is new, and draws it. Returns the problems.
  async function refresh() {
    const { x } = view;
    let problems = await load([...new Set([...asked, ...shown(available())])]);
    const found = shown(available());
    if (found.some((metric) => !asked.includes(metric))) { // they are known only now
      problems = await load([...new Set([...asked, ...found])]);
    }
    if (x !== view.x) return refresh(); // the axis was changed in the meantime
    drawAll();
    isReady = true;
    return problems;
  }

  // After a change of what is shown, or how: requests only what was not requested before.
  function redraw() {
    if (isLoaded(shown(available()))) drawAll();
    else refresh().catch(() => {}); // the next poll fails, too, and says why
  }

  function drawAll() {
    const { evaluation, metrics } = available();
    const found = shown({ evaluation, metrics });
    listMetrics(inOrder(metrics, evaluation), evaluation, found);
    for (const metric of drawn) if (!found.includes(metric)) hideCurves(`${id}-${metric}`);
    for (const [place, metric] of found.entries()) {
      const element = draw(metric, evaluation.has(metric));
      if (grid.children[place] !== element) grid.insertBefore(element, grid.children[place]);
    }
    empty.hidden = found.length > 0;
    setText(empty, selected().length ? "The selected runs have no metrics yet." : NO_RUN);
  }

  function draw(metric, isEvaluation) {
    const { title, y, format, fromZero } = describe(metric, isEvaluation);
    drawn.add(metric);
    return drawCurves(grid.id, { id: `${id}-${metric}`, title, x: xName(), y, showX,
      showY: format, fromZero, ...linesOf(metric), empty: "Unknown for the selected runs." });
  }

  function listMetrics(metrics, evaluation, found) {
    setText(summary, `Metrics: ${found.length} of ${metrics.length}`);
    const state = JSON.stringify([metrics, found]);
    if (chooser.dataset.state === state) return;
    chooser.dataset.state = state;
    const boxes = new Map([...chooser.querySelectorAll("label")]
      .map((label) => [label.dataset.metric, label]));
    for (const [name, label] of boxes) if (!metrics.includes(name)) label.remove();
    for (const metric of metrics) {
      const label = boxes.get(metric) ?? option(metric, evaluation.has(metric));
      label.firstChild.checked = found.includes(metric);
      if (!boxes.has(metric)) chooser.append(label);
    }
  }

  function option(metric, isEvaluation) {
    const input = h("input", { type: "checkbox" });
    input.addEventListener("change", () => {
      choices.set(metric, input.checked);
      redraw();
    });
    return h("label", { "data-metric": metric }, input, describe(metric, isEvaluation).title);
  }

  return { refresh };
}

// The controls of how curves are shown. They hold for all boards.
function toolbar(chooser) {
  const axis = select(AXES);
  const outliers = select(OUTLIERS);
  const smoothing = h("input", { type: "range", min: "0", max: "0.99", step: "0.01" });
  const amount = h("span", { class: "amount" });
  const [logX, logY] = [h("input", { type: "checkbox" }), h("input", { type: "checkbox" })];
  const show = () => {
    [axis.value, outliers.value, smoothing.value] = [view.x, view.outliers, view.smoothing];
    [logX.checked, logY.checked] = [view.logX, view.logY];
    setText(amount, view.smoothing ? String(view.smoothing) : "none");
    smoothing.setAttribute("aria-valuetext", amount.textContent);
  };
  axis.addEventListener("change", () => change({ x: axis.value }));
  outliers.addEventListener("change", () => change({ outliers: outliers.value }));
  smoothing.addEventListener("input", () => change({ smoothing: Number(smoothing.value) }));
  logX.addEventListener("change", () => change({ logX: logX.checked }));
  logY.addEventListener("change", () => change({ logY: logY.checked }));
  onView(show);
  show();
  return h("div", { class: "card toolbar", role: "group", "aria-label": "How curves are shown" },
    chooser,
    h("label", {}, "Over", axis),
    h("label", {}, "Smoothing", smoothing, amount),
    h("label", {}, "Outliers", outliers),
    h("label", {}, logX, "Log x"), h("label", {}, logY, "Log y"),
    h("span", { class: "zooms", role: "group", "aria-label": "Zoom" }, ...ZOOMS.map(([action, text, name]) =>
      h("button", { type: "button", class: "secondary", "aria-label": name, title: name,
        onclick: () => zoomCurves(action) }, text))));
}

const select = (entries) => h("select", {},
  ...Object.entries(entries).map(([value, text]) => h("option", { value }, text)));
