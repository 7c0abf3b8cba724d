// Which runs the table lists, and in which order: search, filters, columns. No DOM here.

import { milliseconds } from "./dates.js";

const DAY = 86400e3;
const PHASES = ["Running", "Starting", "Restarting", "Pending", "Stopped", "Suspended", "Failed",
  "Succeeded"];
const texts = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

// What a column sorts by. Arrays are compared part by part; unknown values come last, always.
// `down`: the highest value comes first, unless the reader turns the order round.
export const KEYS = {
  name: { of: (run) => run.name },
  phase: { of: (run) => (run.phase === null ? null : PHASES.indexOf(run.phase)) },
  started: { of: (run) => milliseconds(run.start_time), down: true },
  step: { of: (run) => run.step, down: true },
  loss: { of: (run) => run.loss },
  eval_loss: { of: (run) => run.eval_loss },
  throughput: { of: rate, down: true },
  left: { of: (run) => run.eta_seconds },
  restarts: { of: (run) => run.restarts, down: true },
  processes: { of: (run) => run.processes, down: true },
};
export const DEFAULT_SORT = "-started";
export const FILTERS = ["search", "phase", "recipe", "source", "from", "to"];

// Tokens per second can't be compared with samples per second.
function rate(run) {
  if (run.tokens_per_second !== null) return [1, run.tokens_per_second];
  return run.samples_per_second === null ? null : [0, run.samples_per_second];
}

// "-loss" is { column: "loss", down: true }; what is unknown is the default.
export function parseSort(text) {
  const column = text.replace(/^-/, "");
  return Object.hasOwn(KEYS, column) ? { column, down: text.startsWith("-") }
    : parseSort(DEFAULT_SORT);
}

// The sort after a column's header was activated.
export function nextSort(sort, column) {
  const now = parseSort(sort);
  const down = now.column === column ? !now.down : Boolean(KEYS[column].down);
  return (down ? "-" : "") + column;
}

// The runs by a column; among equal ones the newest comes first, as in `runs`.
export function sorted(runs, sort) {
  if (sort === DEFAULT_SORT) return runs;
  const { column, down } = parseSort(sort);
  const keyed = runs.map((run) => [KEYS[column].of(run), run]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return down ? compare(b, a) : compare(a, b);
  });
  return keyed.map(([, run]) => run);
}

function compare(a, b) {
  if (Array.isArray(a)) return a.map((part, i) => compare(part, b[i])).find(Boolean) ?? 0;
  return typeof a === "string" ? texts.compare(a, b) : a - b;
}

export function newestFirst(a, b) {
  return (milliseconds(b.start_time) ?? 0) - (milliseconds(a.start_time) ?? 0)
    || texts.compare(a.id, b.id);
}

// Every word of the search is in the name, namespace, recipe, or a label (name=value) of a run.
export function matching(runs, { search, phase, recipe, source, from, to }) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const first = from ? startOfDay(from) : null;
  const end = to ? startOfDay(to) + DAY : null;
  return runs.filter((run) => {
    if (phase && run.phase !== phase) return false;
    if (recipe && run.recipe !== recipe) return false;
    if (source && run.source !== source) return false;
    if (first !== null || end !== null) {
      const started = milliseconds(run.start_time);
      if (started === null || started < (first ?? -Infinity)) return false;
      if (started >= (end ?? Infinity)) return false;
    }
    return !words.length || words.every((word) => searchable(run).includes(word));
  });
}

// In the reader's time zone, as the dates in the table are.
const startOfDay = (date) => new Date(`${date}T00:00`).getTime();

const cache = new WeakMap(); // lower-case text, by run

function searchable(run) {
  if (!cache.has(run)) {
    const labels = Object.entries(run.labels).map(([name, value]) => `${name}=${value}`);
    cache.set(run, [run.name, run.namespace, run.recipe ?? "", ...labels].join("\n").toLowerCase());
  }
  return cache.get(run);
}

// The values that a filter offers: those that occur.
export const valuesOf = (runs, field) =>
  [...new Set(runs.map((run) => run[field]).filter(Boolean))].sort(texts.compare);
