// The runs: their table, and which of them are drawn. Both tabs with curves share the choice.

import { at, cell, h, headRow, row, setText } from "./dom.js";
import { duration, loss, number, throughput, UNKNOWN } from "./format.js";
import { get } from "./http.js";

const DRAWN_AT_FIRST = 4;
const SHOWN_AT_FIRST = 60;
const DASHES = ["solid", "dot", "dash", "dashdot"]; // of one run's ranks or GPUs
const OVER = new Set(["Succeeded", "Failed", "Stopped", "Suspended"]);

export const runs = { all: [], problems: [] };
export const chosen = new Set();
const RATES = ["tokens_per_second", "samples_per_second"];
const rates = new Map(); // of each run, over all its steps
const slots = new Map(); // a run keeps its colour
const listeners = new Set();
const rows = new Map();
let showAll = false;
let untouched = true;

export const onChoice = (listener) => listeners.add(listener);
export const isOver = (run) => OVER.has(run.phase);
export const selected = () => runs.all.filter((run) => chosen.has(run.id));

export function slot(id) {
  if (!slots.has(id)) slots.set(id, slots.size);
  return slots.get(id);
}

// The name, and where it is from as soon as two runs share it.
export function title(run) {
  const twin = runs.all.some((other) => other.name === run.name && other.id !== run.id);
  return twin ? `${run.name} (${run.source}, ${run.namespace})` : run.name;
}

export function choose(id, wanted) {
  untouched = false;
  if (wanted) chosen.add(id);
  else chosen.delete(id);
  for (const box of document.querySelectorAll("input[data-run]")) {
    if (box.dataset.run === id) box.checked = wanted;
  }
  for (const listener of listeners) listener();
}

export function checkbox(run) {
  const name = `Draw ${title(run)}`;
  const box = h("input", { type: "checkbox", "data-run": run.id, "aria-label": name });
  box.checked = chosen.has(run.id);
  box.addEventListener("change", () => choose(run.id, box.checked));
  return box;
}

export async function update() {
  const answer = await get("api/runs");
  runs.all = answer.runs;
  runs.problems = answer.problems;
  const known = new Set(runs.all.map((run) => run.id));
  for (const id of chosen) if (!known.has(id)) chosen.delete(id);
  if (untouched && chosen.size === 0) {
    const first = [...runs.all].sort((a, b) => isOver(a) - isOver(b)).slice(0, DRAWN_AT_FIRST);
    for (const run of first) chosen.add(run.id);
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
  const shown = showAll ? runs.all : runs.all.slice(0, SHOWN_AT_FIRST);
  const wanted = new Set(shown.map((run) => run.id));
  for (const [id, kept] of rows) {
    if (wanted.has(id)) continue;
    kept.element.remove();
    rows.delete(id);
  }
  let previous = null;
  for (const run of shown) {
    const kept = rows.get(run.id) ?? made(run);
    fill(kept, run);
    const place = previous ? previous.nextSibling : table.tBodies[0].firstChild;
    if (place !== kept.element) table.tBodies[0].insertBefore(kept.element, place);
    previous = kept.element;
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

function made(run) {
  const parts = {
    name: h("span", { class: "name" }), note: h("span", { class: "note" }),
    phase: h("span", { class: "phase" }), step: h("span"),
    bar: h("progress", { "aria-label": `Steps of ${run.name}` }),
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
  const kept = { element, parts, box };
  rows.set(run.id, kept);
  return kept;
}

function fill({ parts, box }, run) {
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
  const rate = throughput(isOver(run) ? { ...run, ...rates.get(run.id) } : run);
  setText(parts.throughput, isOver(run) && rate === UNKNOWN ? "–" : rate);
  setText(parts.left, isOver(run) ? "–" : duration(run.eta_seconds));
  setText(parts.restarts, run.restarts === null ? UNKNOWN : String(run.restarts));
  setText(parts.processes, run.processes === null ? UNKNOWN : String(run.processes));
  box.checked = chosen.has(run.id);
}

// Curves of the chosen runs, asked for again only when they can have changed.
let asked = "";
let known = { runs: {}, problems: [] };

export async function histories(metrics) {
  const picked = selected();
  if (!picked.length) return { runs: {}, problems: [] };
  const state = JSON.stringify([metrics, picked.map((run) => [run.id, run.step, run.phase])]);
  if (state !== asked || picked.some((run) => run.phase === null)) {
    known = await get("api/history", [
      ...picked.map((run) => ["run", run.id]), ...metrics.map((metric) => ["metric", metric]),
    ]);
    asked = known.problems.length ? "" : state; // what failed is tried again
    keepRates();
  }
  return known;
}

// The status of a run that is over tells no throughput; its history does, once it is drawn.
function keepRates() {
  for (const [id, { curves }] of Object.entries(known.runs)) {
    for (const { metric, rate } of curves) {
      if (RATES.includes(metric) && rate) rates.set(id, { ...rates.get(id), [metric]: rate });
    }
  }
  show();
}

// The lines of one metric: one for each run, or for each of its parts.
export function lines(found, metric, style = {}) {
  return selected().flatMap((run) =>
    (found.runs[run.id]?.curves ?? []).filter((curve) => curve.metric === metric)
      .map((curve, index) => ({
        name: curve.part ? `${title(run)}: ${curve.part}` : title(run),
        x: curve.x, y: curve.y, seconds: curve.x_is === "seconds",
        // Ranks of several runs have their run's colour, those of one run colours of their own.
        slot: slot(run.id) + (chosen.size === 1 ? index : 0),
        // With more runs than colours, the next eight are dotted, and so on.
        dash: DASHES[(index + Math.floor(slot(run.id) / 8)) % DASHES.length],
        ...style,
      })));
}

export const xName = (drawn) => (drawn.some((line) => line.seconds)
  ? "Seconds since the start" : "Optimizer step");
