// The runs, and their selection, which the table and all charts share.

import { h } from "./dom.js";
import { get } from "./http.js";
import { newestFirst } from "./run_filter.js";
import { change, onNavigation } from "./state.js";

const INITIALLY_SELECTED = 4;
export const MOST_SELECTED = 50; // as many as one request for curves may name
const FINISHED = new Set(["Succeeded", "Failed", "Stopped", "Suspended"]);
// The server leaves out what is unknown.
const UNKNOWN_RUN = {
  recipe: null, labels: {}, phase: null, message: "", step: null, total_steps: null, loss: null,
  eval_loss: null, samples_per_second: null, tokens_per_second: null, eta_seconds: null,
  restarts: null, processes: null, checkpoint_step: null, peak_memory_bytes: null, usage: "",
  profile: null, start_time: null, completion_time: null,
};

export const runs = { all: [], problems: [] };
const byId = new Map();
let version = ""; // of the list that the server has sent
let names = new Map(); // how many runs have a name
const selection = new Set();
const listeners = { runs: new Set(), selection: new Set() };
let isDefault = true; // the reader has not changed the selection

export const onRuns = (listener) => listeners.runs.add(listener);
export const onSelection = (listener) => listeners.selection.add(listener);
export const isFinished = (run) => FINISHED.has(run.phase);
export const isSelected = (id) => selection.has(id);
export const selected = () => runs.all.filter((run) => selection.has(run.id));

// The name; with data source and namespace if two runs share it.
export const title = (run) => (names.get(run.name) > 1
  ? `${run.name} (${run.source}, ${run.namespace})` : run.name);

function announce() {
  change({ select: [...selection] });
  for (const box of document.querySelectorAll("input[data-run]")) {
    box.checked = selection.has(box.dataset.run);
  }
  for (const listener of listeners.selection) listener();
}

function select(id, wanted) {
  isDefault = false;
  if (!wanted) selection.delete(id);
  else if (selected().length < MOST_SELECTED) selection.add(id);
  announce();
}

export function clearSelection() {
  isDefault = false;
  selection.clear();
  announce();
}

// Selects this run and no other.
export function selectOnly(id) {
  isDefault = false;
  selection.clear();
  selection.add(id);
}

export function checkbox(run) {
  const name = `Show ${title(run)} in the charts`;
  const box = h("input", { type: "checkbox", "data-run": run.id, "aria-label": name });
  box.checked = selection.has(run.id);
  box.addEventListener("change", () => select(run.id, box.checked));
  return box;
}

onNavigation(({ view, parameters }) => {
  if (view === "run" || !parameters.has("select")) return;
  isDefault = false;
  selection.clear();
  for (const id of parameters.getAll("select").slice(0, MOST_SELECTED)) if (id) selection.add(id);
  for (const listener of listeners.selection) listener();
});

// Asks for what has changed since the last answer.
export async function update(view) {
  const answer = await get("api/runs", version ? [["since", version]] : []);
  const removed = answer.removed ?? [];
  // Progress moves no run: only with others, or another start, are they sorted again.
  const isInOrder = !answer.complete && removed.length === 0
    && answer.runs.every(({ id, start_time: start = null }) => byId.get(id)?.start_time === start);
  if (answer.complete) byId.clear();
  for (const id of removed) byId.delete(id);
  for (const run of answer.runs) byId.set(run.id, { ...UNKNOWN_RUN, ...run });
  const hasChanged = answer.complete || answer.runs.length > 0 || removed.length > 0;
  version = answer.version;
  runs.problems = answer.problems ?? [];
  if (!hasChanged) return;
  runs.all = isInOrder ? runs.all.map(({ id }) => byId.get(id))
    : [...byId.values()].sort(newestFirst);
  names = new Map();
  for (const { name } of runs.all) names.set(name, (names.get(name) ?? 0) + 1);
  if (isDefault && !runs.all.some((run) => selection.has(run.id))) selectFirst();
  if (isDefault && view !== "run") change({ select: [...selection] });
  for (const listener of listeners.runs) listener();
}

// Active runs first, then the newest.
function selectFirst() {
  const active = runs.all.filter((run) => !isFinished(run));
  const first = [...active, ...runs.all.filter(isFinished)];
  for (const run of first.slice(0, INITIALLY_SELECTED)) selection.add(run.id);
}
