// The runs: their table, their selection (shared by all charts), and their histories.

import { at, cell, h, headRow, row, setText } from "./dom.js";
import { duration, loss, number, throughput, UNKNOWN } from "./format.js";
import { get } from "./http.js";

const INITIALLY_SELECTED = 4;
const INITIALLY_SHOWN = 60;
const DASHES = ["solid", "dot", "dash", "dashdot"]; // of a run's ranks or GPUs
const FINISHED = new Set(["Succeeded", "Failed", "Stopped", "Suspended"]);

export const runs = { all: [], problems: [] };
const selection = new Set();
const RATES = ["tokens_per_second", "samples_per_second"];
const rates = new Map(); // mean over all steps, by run
const slots = new Map(); // index of its colour, by run
const listeners = new Set();
const rows = new Map();
let showAll = false;
let isDefault = true; // the user has not changed the selection

export const onSelection = (listener) => listeners.add(listener);
export const isFinished = (run) => FINISHED.has(run.phase);
export const selected = () => runs.all.filter((run) => selection.has(run.id));

export function slot(id) {
  if (!slots.has(id)) slots.set(id, slots.size);
  return slots.get(id);
}

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
  ["Run", null], ["Phase", "measured"], ["Step", "measured"], ["Loss", "measured"],
  ["Throughput", "measured"], ["Time left", "projected"], ["Restarts", "measured"],
  ["Processes", "measured"],
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
  const swatch = h("span", { class: "swatch", "aria-hidden": "true" });
  swatch.style.background = `var(--line-${slot(run.id) % 8})`;
  const element = row(
    h("th", { scope: "row", role: "rowheader" },
      h("label", {}, box, swatch, parts.name), parts.note),
    cell("Phase (measured)", parts.phase), cell("Step (measured)", parts.step, parts.bar),
    cell("Loss (measured)", parts.loss), cell("Throughput (measured)", parts.throughput),
    cell("Time left (projected)", parts.left), cell("Restarts (measured)", parts.restarts),
    cell("Processes (measured)", parts.processes),
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
  const rate = throughput(isFinished(run) ? { ...run, ...rates.get(run.id) } : run);
  setText(parts.throughput, isFinished(run) && rate === UNKNOWN ? "–" : rate);
  setText(parts.left, isFinished(run) ? "–" : duration(run.eta_seconds));
  setText(parts.restarts, run.restarts === null ? UNKNOWN : String(run.restarts));
  setText(parts.processes, run.processes === null ? UNKNOWN : String(run.processes));
  box.checked = selection.has(run.id);
}

// Curves of the selected runs, requested again only if they may have changed.
let requestedFor = "";
let received = { runs: {}, problems: [] };

export async function histories(metrics) {
  const chosen = selected();
  if (!chosen.length) return { runs: {}, problems: [] };
  const state = JSON.stringify([metrics, chosen.map((run) => [run.id, run.step, run.phase])]);
  if (state !== requestedFor || chosen.some((run) => run.phase === null)) {
    received = await get("api/history", [
      ...chosen.map((run) => ["run", run.id]), ...metrics.map((metric) => ["metric", metric]),
    ]);
    requestedFor = received.problems.length ? "" : state; // failures are retried
    storeRates();
  }
  return received;
}

// The status of a finished run has no throughput; its history does, once requested.
function storeRates() {
  for (const [id, { curves }] of Object.entries(received.runs)) {
    for (const { metric, rate } of curves) {
      if (RATES.includes(metric) && rate) rates.set(id, { ...rates.get(id), [metric]: rate });
    }
  }
  show();
}

// The lines of one metric: one per run, or one per rank or GPU.
export function lines(data, metric, style = {}) {
  return selected().flatMap((run) =>
    (data.runs[run.id]?.curves ?? []).filter((curve) => curve.metric === metric)
      .map((curve, index) => ({
        name: curve.part ? `${title(run)}: ${curve.part}` : title(run),
        x: curve.x, y: curve.y, seconds: curve.x_is === "seconds",
        // With several runs selected, all ranks of a run share its colour.
        slot: slot(run.id) + (selection.size === 1 ? index : 0),
        // With more runs than colours, the next eight are dotted, and so on.
        dash: DASHES[(index + Math.floor(slot(run.id) / 8)) % DASHES.length],
        ...style,
      })));
}

export const xName = (drawn) => (drawn.some((line) => line.seconds)
  ? "Seconds since the start" : "Step");
