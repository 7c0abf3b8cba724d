// The runs: their table, and their selection, which all charts share.

import { at, cell, h, headRow, row, setText } from "./dom.js";
import { duration, loss, number, throughput, UNKNOWN } from "./format.js";
import { get } from "./http.js";
import { paintSwatches, runSwatch } from "./swatches.js";

const INITIALLY_SELECTED = 4;
const INITIALLY_SHOWN = 60;
const FINISHED = new Set(["Succeeded", "Failed", "Stopped", "Suspended"]);

export const runs = { all: [], problems: [] };
const selection = new Set();
const listeners = new Set();
const rows = new Map();
let showAll = false;
let isDefault = true; // the user has not changed the selection

export const onSelection = (listener) => listeners.add(listener);
export const isFinished = (run) => FINISHED.has(run.phase);
export const selected = () => runs.all.filter((run) => selection.has(run.id));

// The name; with data source and namespace if two runs share it.
export function title(run) {
  const ambiguous = runs.all.some((other) => other.name === run.name && other.id !== run.id);
  return ambiguous ? `${run.name} (${run.source}, ${run.namespace})` : run.name;
}

function select(id, wanted) {
  isDefault = false;
  if (wanted) selection.add(id);
  else selection.delete(id);
  for (const box of document.querySelectorAll("input[data-run]")) {
    if (box.dataset.run === id) box.checked = wanted;
  }
  for (const listener of listeners) listener();
}

export function checkbox(run) {
  const name = `Show ${title(run)} in the charts`;
  const box = h("input", { type: "checkbox", "data-run": run.id, "aria-label": name });
  box.checked = selection.has(run.id);
  box.addEventListener("change", () => select(run.id, box.checked));
  return box;
}

export async function update() {
  const answer = await get("api/runs");
  runs.all = answer.runs;
  runs.problems = answer.problems;
  const known = new Set(runs.all.map((run) => run.id));
  for (const id of selection) if (!known.has(id)) selection.delete(id);
  if (isDefault && selection.size === 0) {
    const first = [...runs.all].sort((a, b) => isFinished(a) - isFinished(b)).slice(0, INITIALLY_SELECTED);
    for (const run of first) selection.add(run.id);
  }
  show();
}

const COLUMNS = [
  ["Run", null], ["Phase", null], ["Step", null], ["Loss", null], ["Throughput", null],
  ["Time left", "projected"], ["Restarts", null], ["Processes", null],
];

function show() {
  const table = at("runs");
  if (!table.tHead.rows[0].cells.length) headRow(table, COLUMNS);
  const shown = showAll ? runs.all : runs.all.slice(0, INITIALLY_SHOWN);
  const wanted = new Set(shown.map((run) => run.id));
  for (const [id, current] of rows) {
    if (wanted.has(id)) continue;
    current.element.remove();
    rows.delete(id);
  }
  let previous = null;
  for (const run of shown) {
    const current = rows.get(run.id) ?? createRow(run);
    fillRow(current, run);
    const position = previous ? previous.nextSibling : table.tBodies[0].firstChild;
    if (position !== current.element) table.tBodies[0].insertBefore(current.element, position);
    previous = current.element;
  }
  at("no-runs").hidden = runs.all.length > 0;
  table.hidden = runs.all.length === 0;
  const more = at("more-runs");
  more.hidden = shown.length === runs.all.length;
  setText(more, `Show all ${runs.all.length} runs`);
  paintSwatches(selected().map((run) => run.id));
}

at("more-runs").addEventListener("click", () => {
  showAll = true;
  show();
});

function createRow(run) {
  const parts = {
    name: h("span", { class: "name" }), note: h("span", { class: "note" }),
    phase: h("span", { class: "phase" }), step: h("span"),
    bar: h("progress", { "aria-label": `Progress of ${run.name}` }),
    loss: h("span"), throughput: h("span"), left: h("span"), restarts: h("span"),
    processes: h("span"),
  };
  const box = checkbox(run);
  const element = row(
    h("th", { scope: "row", role: "rowheader" },
      h("label", {}, box, runSwatch(run.id), parts.name), parts.note),
    cell("Phase", parts.phase), cell("Step", parts.step, parts.bar),
    cell("Loss", parts.loss), cell("Throughput", parts.throughput),
    cell("Time left (projected)", parts.left), cell("Restarts", parts.restarts),
    cell("Processes", parts.processes),
  );
  const current = { element, parts, box };
  rows.set(run.id, current);
  return current;
}

function fillRow({ parts, box }, run) {
  setText(parts.name, title(run));
  setText(parts.note, [run.recipe, run.message].filter(Boolean).join(" · "));
  setText(parts.phase, run.phase ?? UNKNOWN);
  parts.phase.className = `phase ${(run.phase ?? "").toLowerCase()}`;
  const step = run.step ?? null;
  setText(parts.step, step === null ? UNKNOWN
    : run.total_steps ? `${number(step, 4)} of ${number(run.total_steps, 4)}` : number(step, 4));
  parts.bar.hidden = step === null || !run.total_steps;
  parts.bar.max = run.total_steps ?? 1;
  parts.bar.value = step ?? 0;
  setText(parts.loss, loss(run.loss));
  const rate = throughput(run);
  setText(parts.throughput, isFinished(run) && rate === UNKNOWN ? "–" : rate);
  setText(parts.left, isFinished(run) ? "–" : duration(run.eta_seconds));
  setText(parts.restarts, run.restarts === null ? UNKNOWN : String(run.restarts));
  setText(parts.processes, run.processes === null ? UNKNOWN : String(run.processes));
  box.checked = selection.has(run.id);
}
