// The table of runs: a page of rows at a time, with search, filters and sorting kept in the URL.

import { moment, full } from "./dates.js";
import { at, cell, debounced, h, options, row, setText } from "./dom.js";
import { count, duration, loss, number, throughput, UNKNOWN } from "./format.js";
import { DEFAULT_SORT, FILTERS, matching, nextSort, parseSort, sorted, valuesOf }
  from "./run_filter.js";
import { checkbox, clearSelection, isFinished, isSelected, MOST_SELECTED, onRuns, onSelection, runs, selected, title }
  from "./runs.js";
import { change, fragment, onNavigation } from "./state.js";
import { paintSwatches, runSwatch } from "./swatches.js";

const ROWS = 10; // of a page
const COLUMNS = [
  ["name", "Run"], ["phase", "Phase"], ["started", "Started"], ["step", "Step"], ["loss", "Loss"],
  ["eval_loss", "Eval. loss"], ["throughput", "Throughput"], ["left", "Time left", "projected"],
  ["restarts", "Restarts"], ["processes", "Processes"],
];
const form = at("run-filters");
const field = form.elements;
const table = at("runs");
const rows = new Map(); // of this page, by run
let wanted = { sort: DEFAULT_SORT, page: 1, rows: ROWS };
let found = []; // the runs that match

// ------------------------------------------------------------------ the reader's wishes

onNavigation(({ view, parameters }) => {
  if (view === "run") return; // its link has no wishes about the table: they stay
  for (const name of FILTERS) {
    const value = parameters.get(name) ?? "";
    if (field[name].tagName === "SELECT") offer(field[name], value);
    if (field[name].value !== value) field[name].value = value;
  }
  wanted = {
    sort: parameters.get("sort") ?? DEFAULT_SORT,
    page: Math.max(1, Number.parseInt(parameters.get("page"), 10) || 1),
    rows: [10, 25, 100].find((n) => String(n) === parameters.get("rows")) ?? ROWS,
  };
  field.rows.value = String(wanted.rows);
  show();
});

// A filter of a shared link may name what no run here has: it is offered nevertheless.
function offer(select, value) {
  if (value && ![...select.options].some((option) => option.value === value)) {
    select.append(h("option", { value }, value));
  }
}

function wish(changes, push) {
  wanted = { ...wanted, page: 1, ...changes };
  change({
    ...filters(),
    sort: wanted.sort === DEFAULT_SORT ? "" : wanted.sort,
    page: wanted.page === 1 ? "" : wanted.page,
    rows: wanted.rows === ROWS ? "" : wanted.rows,
  }, push);
  show();
}

const search = debounced(() => wish({}, false), 120);
form.addEventListener("submit", (event) => event.preventDefault());
field.search.addEventListener("input", search);
for (const name of FILTERS.filter((one) => one !== "search")) {
  field[name].addEventListener("change", () => wish({}, true));
}
field.sort.addEventListener("change", () => wish({ sort: field.sort.value }, true));
field.rows.addEventListener("change", () => wish({ rows: Number(field.rows.value) }, true));
at("clear-filters").addEventListener("click", () => {
  for (const name of FILTERS) field[name].value = "";
  wish({}, true);
  field.search.focus();
});
at("clear-selection").addEventListener("click", () => {
  clearSelection();
  field.search.focus();
});
for (const [id, step] of [["previous-runs", -1], ["next-runs", 1]]) {
  at(id).addEventListener("click", () => wish({ page: wanted.page + step }, true));
}

// ------------------------------------------------------------------ what is shown

onRuns(show);
onSelection(showSelection);

function show() {
  offerValues();
  showHead();
  found = sorted(matching(runs.all, filters()), wanted.sort);
  const pages = Math.max(1, Math.ceil(found.length / wanted.rows));
  const page = Math.min(wanted.page, pages);
  showRows(found.slice((page - 1) * wanted.rows, page * wanted.rows));
  at("run-pages").hidden = found.length <= 10;
  setText(at("page-of-runs"), `Page ${page} of ${pages}`);
  at("previous-runs").disabled = page === 1;
  at("next-runs").disabled = page === pages;
  if (runs.all.length) wanted.page = page; // until then, the page of a shared link is not known
  showSelection();
}

function filters() {
  return Object.fromEntries(FILTERS.map((name) => [name, field[name].value]));
}

function showCount() {
  const [all, chosen] = [runs.all.length, selected().length];
  const filtered = FILTERS.some((name) => field[name].value);
  setText(at("runs-found"), filtered ? `${found.length} of ${count(all, "run")}` : count(all, "run"));
  const most = chosen >= MOST_SELECTED ? ", the most that are possible" : "";
  setText(at("runs-selected"), `${chosen} selected for the charts${most}`);
  at("clear-filters").hidden = !filtered;
  at("clear-selection").hidden = chosen === 0;
  at("no-runs").hidden = all > 0;
  at("no-match").hidden = all === 0 || found.length > 0;
  for (const part of [form, table, at("runs-summary")]) part.hidden = all === 0;
  table.hidden ||= found.length === 0;
}

function offerValues() {
  for (const [name, every] of [["phase", "any"], ["recipe", "any"], ["source", "any"]]) {
    const values = new Set(valuesOf(runs.all, name));
    if (field[name].value) values.add(field[name].value);
    options(field[name], [["", every], ...[...values].map((value) => [value, value])]);
  }
}

function showHead() {
  const head = table.tHead.rows[0];
  if (!head.cells.length) createHead(head);
  const { column, down } = parseSort(wanted.sort);
  for (const th of head.cells) {
    const isSorted = th.dataset.column === column;
    if (isSorted) th.setAttribute("aria-sort", down ? "descending" : "ascending");
    else th.removeAttribute("aria-sort");
    const { down: next } = parseSort(nextSort(wanted.sort, th.dataset.column));
    th.firstChild.title = `Sort in ${next ? "descending" : "ascending"} order`;
  }
  field.sort.value = `${down ? "-" : ""}${column}`;
}

function createHead(head) {
  head.replaceChildren(...COLUMNS.map(([column, name, origin]) =>
    h("th", { scope: "col", role: "columnheader", "data-column": column },
      // Labelled, because the arrow that the style adds would be read, too. What it does is its
      // title, not its label, which names the column in every cell.
      h("button", { type: "button", class: "sort", "aria-label": name,
        onclick: () => wish({ sort: nextSort(wanted.sort, column) }, true) }, name),
      origin ? h("span", { class: `badge ${origin}` }, origin) : null)));
  options(field.sort, COLUMNS.flatMap(([column, name]) =>
    [[column, `${name}, ascending`], [`-${column}`, `${name}, descending`]]));
}

function showRows(shown) {
  const ids = new Set(shown.map((run) => run.id));
  const focused = document.activeElement;
  for (const [id, { element }] of rows) {
    if (ids.has(id)) continue;
    element.remove();
    rows.delete(id);
  }
  let previous = null;
  for (const run of shown) {
    if (!rows.has(run.id)) rows.set(run.id, createRow(run));
    const { element } = rows.get(run.id);
    fillRow(rows.get(run.id), run);
    const position = previous ? previous.nextSibling : table.tBodies[0].firstChild;
    if (position !== element) table.tBodies[0].insertBefore(element, position);
    previous = element;
  }
  // A row that has moved has lost the focus.
  if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
}

function createRow(run) {
  const text = () => h("span");
  const parts = {
    name: h("a", { class: "name", href: fragment("run", { id: run.id }), "data-run": run.id }),
    note: h("span", { class: "note" }), phase: h("span", { class: "phase" }),
    started: text(), step: text(), loss: text(), evalLoss: text(), throughput: text(), left: text(),
    restarts: text(), processes: text(),
    bar: h("progress", { "aria-label": `Progress of ${run.name}` }),
    box: checkbox(run), swatch: runSwatch(run.id),
  };
  const element = row(
    h("th", { scope: "row", role: "rowheader" },
      h("div", { class: "run" }, parts.box, parts.swatch, parts.name), parts.note),
    cell("Phase", parts.phase), cell("Started", parts.started), cell("Step", parts.step, parts.bar),
    cell("Loss", parts.loss), cell("Eval. loss", parts.evalLoss),
    cell("Throughput", parts.throughput), cell("Time left (projected)", parts.left),
    cell("Restarts", parts.restarts), cell("Processes", parts.processes),
  );
  return { element, parts };
}

function fillRow({ parts }, run) {
  setText(parts.name, title(run));
  setText(parts.note, [run.recipe, run.message].filter(Boolean).join(" · "));
  setText(parts.phase, run.phase ?? UNKNOWN);
  parts.phase.className = `phase ${(run.phase ?? "").toLowerCase()}`;
  setText(parts.started, moment(run.start_time));
  parts.started.title = full(run.start_time);
  setText(parts.step, run.step === null ? UNKNOWN
    : run.total_steps ? `${number(run.step, 4)} of ${number(run.total_steps, 4)}`
      : number(run.step, 4));
  parts.bar.hidden = run.step === null || !run.total_steps;
  parts.bar.max = run.total_steps ?? 1;
  parts.bar.value = run.step ?? 0;
  setText(parts.loss, loss(run.loss));
  setText(parts.evalLoss, run.eval_loss === null ? "–" : loss(run.eval_loss));
  const rate = throughput(run);
  setText(parts.throughput, isFinished(run) && rate === UNKNOWN ? "–" : rate);
  setText(parts.left, isFinished(run) ? "–" : duration(run.eta_seconds));
  setText(parts.restarts, run.restarts === null ? UNKNOWN : String(run.restarts));
  setText(parts.processes, run.processes === null ? UNKNOWN : String(run.processes));
}

// Each selected run's box, and a piece of its line in the charts.
function showSelection() {
  for (const [id, { parts }] of rows) parts.box.checked = isSelected(id);
  paintSwatches(selected().map((run) => run.id));
  showCount();
}

// Where the reader was before a run's page: its link in the table.
export function focusRun(id) {
  rows.get(id)?.parts.name.focus({ preventScroll: true });
}
