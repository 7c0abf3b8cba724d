// The frame of a chart: title, legend, what is not shown, and the values as a table.

import { at, badge, h, setText } from "./dom.js";
import { sample } from "./svg.js";

const TABLE_ROWS = 12; // of each line
const MAX_LABELLED = 10; // lines in the text for screen readers
const MAX_IN_LEGEND = 32;

// Creates a figure inside `parent`; spec: {id, title, origin}.
export function createFigure(parent, spec) {
  const plot = h("div", { class: "plot", role: "img", id: `plot-${spec.id}` });
  const legend = h("ul", { class: "legend", "aria-hidden": "true" });
  const empty = h("p", { class: "empty" });
  const note = h("p", { class: "hint" });
  const table = h("table", { class: "plain" });
  const details = h("details", {}, h("summary", {}, "Show as table"),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${spec.title}: table` },
      table));
  const mark = spec.origin ? badge(spec.origin) : null;
  const title = h("h2", {}, spec.title);
  const element = h("figure", { class: "card" }, h("figcaption", {}, title, " ", mark), legend,
    plot, empty, note, details);
  at(parent).append(element);
  const figure = { element, plot, legend, empty, note, table, details, title, mark, spec };
  details.addEventListener("toggle", () => fillTable(figure));
  return figure;
}

// Shows everything but the plot itself. Returns whether there is something to plot.
export function updateFigure(figure, spec) {
  figure.spec = spec;
  const isEmpty = !spec.lines.some((line) => line.x.length);
  setText(figure.title, spec.title);
  setText(figure.empty, spec.empty ?? "unknown");
  setText(figure.note, (spec.notes ?? []).join(" "));
  figure.empty.hidden = !isEmpty;
  figure.note.hidden = !figure.note.textContent;
  for (const part of [figure.plot, figure.legend, figure.details]) part.hidden = isEmpty;
  if (figure.mark) figure.mark.hidden = isEmpty;
  if (isEmpty) return false;
  figure.plot.setAttribute("aria-label", summary(spec));
  showLegend(figure);
  fillTable(figure);
  return true;
}

function summary({ title, lines, bars, showX, showY }) {
  const values = lines.slice(0, MAX_LABELLED).filter((line) => line.x.length).flatMap((line) => (bars
    ? line.y.map((name, i) => `${name}: ${line.text[i]}`)
    : [`${line.name}: ${showY(line.y.at(-1))} at ${showX(line.x.at(-1))}`]));
  const more = lines.length > MAX_LABELLED ? `; and ${lines.length - MAX_LABELLED} more` : "";
  return `${title}. ${values.join("; ")}${more}`;
}

// Anew only for other lines: their values change far more often.
function showLegend(figure) {
  const { spec } = figure;
  const state = JSON.stringify(spec.lines.map(({ name, style, markers, band }) =>
    [name, style, markers, band?.name]));
  if (figure.named === state) return;
  figure.named = state;
  figure.legend.replaceChildren(...legendEntries(spec));
}

function legendEntries({ lines, bars }) {
  if (bars) return [];
  const entries = lines.slice(0, MAX_IN_LEGEND).flatMap((line) => [
    h("li", {}, sample(line), line.name),
    ...(line.band ? [h("li", {}, h("span", { class: `shade back-${line.style.colour}` }),
      line.band.name)] : []),
  ]);
  const more = lines.length - MAX_IN_LEGEND;
  return more > 0 ? [...entries, h("li", {}, `and ${more} more`)] : entries;
}

function fillTable({ table, details, spec }) {
  if (!details.open) return;
  const rows = spec.lines.flatMap((line) => {
    const every = Math.max(1, Math.ceil(line.x.length / TABLE_ROWS));
    return [...line.x.keys()].filter((i) => i % every === 0 || i === line.x.length - 1)
      .map((i) => (spec.bars ? [line.y[i], line.text[i]]
        : [line.name, spec.showX(line.x[i]), spec.showY(line.y[i])]));
  });
  const names = spec.bars ? ["Name", spec.x] : ["Line", spec.x, spec.y];
  table.replaceChildren(
    h("caption", {}, `${spec.title}: up to ${TABLE_ROWS} values of each line`),
    h("thead", {}, h("tr", {}, ...names.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, ...rows.map(([name, ...figures]) => h("tr", {},
      h("th", { scope: "row" }, name), ...figures.map((value) => h("td", {}, value))))),
  );
}
