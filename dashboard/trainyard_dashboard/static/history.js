// What the selected runs have logged: requested only as far as it is new, and kept.

import { firstAtLeast, interpolate } from "./curve_math.js";
import { duration, number } from "./format.js";
import { get } from "./http.js";
import { isSelected, selected, title } from "./runs.js";
import { assign, style, styleOf } from "./styles.js";
import { AXES, view } from "./view.js";

const MAX_POINTS = 1500; // of a curve that has grown by additions; then it is requested anew
const MAX_SAMPLES = 20; // of text, of each run
const MAX_METRICS = 64; // in one request: the server accepts no more
const kept = new Map(); // by run
let loads = Promise.resolve(); // each begins when the one before has ended

// Requests the curves of these metrics. Returns the problems.
export function load(wanted) {
  const loaded = loads.then(() => request(wanted));
  loads = loaded.catch(() => {});
  return loaded;
}

async function request(wanted) {
  const chosen = selected();
  assign(chosen.map((run) => run.id));
  for (const id of kept.keys()) if (!chosen.some((run) => run.id === id)) kept.delete(id);
  const metrics = [...wanted, ...axes()];
  const stale = chosen.filter((run) => !isFresh(run, metrics));
  const others = chosen.filter((run) => !stale.includes(run))
    .flatMap((run) => kept.get(run.id).problems);
  if (!stale.length) return others;
  const answers = await Promise.all(slices(wanted).map((slice) => get("api/history", [
    ...stale.map((run) => ["run", run.id]),
    ...stale.map((run) => ["known", known(run, metrics)]),
    ...slice.map((metric) => ["metric", metric]),
  ])));
  const problems = [...new Set(answers.flatMap((answer) => answer.problems))];
  const own = new Map(stale.map((run) =>
    [run, problems.filter((line) => line.startsWith(`${run.name}: `))]));
  // Of what is no line about a run's log, any run may lack something.
  const hasFailed = problems.length > new Set([...own.values()].flat()).size;
  for (const run of stale) {
    const found = together(answers.map((answer) => answer.runs[run.id]));
    if (found && isSelected(run.id)) keep(run, metrics, found, own.get(run), hasFailed);
  }
  return [...problems, ...others];
}

// The curves that say where steps lie on the present axis. Time is that of many curves anyway.
const axes = () => (view.x === "tokens" || view.x === "samples"
  ? ["axis:seconds", `axis:${view.x}`] : ["axis:seconds"]);

// With each slice go the axes: they have the last step of all that is logged.
function slices(wanted) {
  const most = MAX_METRICS - axes().length;
  const found = [];
  for (let i = 0; i < wanted.length; i += most) found.push([...wanted.slice(i, i + most), ...axes()]);
  return found;
}

// What the answers to all slices say of one run; null if one of them does not know the run, or
// its log was replaced in the meantime.
function together(parts) {
  if (parts.some((part) => !part || part.version !== parts[0].version)) return null;
  const all = (field) => parts.flatMap((part) => part[field]);
  // The run may have gone on between two answers: it is known up to the earliest of their ends.
  const ends = parts.map(({ curves }) => Math.max(0, ...curves
    .filter((curve) => curve.x_is === "step").map((curve) => curve.x.at(-1) ?? 0)));
  return { ...parts.at(-1), curves: all("curves"), metrics: [...new Set(all("metrics"))],
    evaluation: [...new Set(all("evaluation"))], reach: Math.min(...ends) };
}

const state = (run) => JSON.stringify([run.step, run.phase]);

// Whether all that is known of these metrics, on the present axis, was requested. A run that has
// only just been selected does not count: its selection is a request of its own.
export const isLoaded = (metrics) => selected().every((run) => {
  const requested = kept.get(run.id)?.requested;
  return !requested || [...metrics, ...axes()].every((metric) => requested.has(metric));
});

function isFresh(run, metrics) {
  const entry = kept.get(run.id);
  return entry !== undefined && run.phase !== null && entry.state === state(run)
    && metrics.every((metric) => entry.requested.has(metric));
}

function known(run, metrics) {
  const entry = kept.get(run.id);
  if (!entry?.version || !metrics.every((metric) => entry.requested.has(metric))) return "";
  if ([...entry.curves.values()].some((curve) => curve.x.length > MAX_POINTS)) return "";
  return entry.reach > 0 ? `${entry.version}@${entry.reach}` : "";
}

function keep(run, metrics, found, problems, hasFailed) {
  const before = kept.get(run.id);
  const isSame = Boolean(before?.version) && before.version === found.version;
  // Curves that were not requested again are complete only if nothing is new.
  const isAddition = isSame && before.state === state(run);
  const curves = new Map(isAddition ? before.curves : []);
  for (const curve of found.curves) {
    const key = JSON.stringify([curve.metric, curve.part]);
    const old = curve.since === undefined ? undefined : before.curves.get(key);
    curves.set(key, old ? joined(old, curve) : curve);
  }
  const first = found.samples[0]?.step ?? Infinity;
  kept.set(run.id, {
    curves, problems, version: found.version, metrics: found.metrics, evaluation: found.evaluation,
    state: hasFailed ? "" : state(run), // failures are retried
    requested: new Set([...(isAddition ? before.requested : []), ...metrics]),
    reach: isAddition ? Math.min(before.reach, found.reach) : found.reach, // the last step of every curve
    samples: [...(isSame ? before.samples.filter((one) => one.step < first) : []),
      ...found.samples].slice(-MAX_SAMPLES),
  });
}

// A curve and its continuation, which begins with points that may be known already.
function joined(old, curve) {
  const end = firstAtLeast(old.x, curve.since);
  return { ...curve, x: [...old.x.slice(0, end), ...curve.x],
    y: [...old.y.slice(0, end), ...curve.y] };
}

// The names of all metrics that the selected runs have, and of those from evaluations.
export function available() {
  const entries = [...kept.values()];
  return {
    metrics: new Set(entries.flatMap((entry) => entry.metrics)
      .filter((metric) => !metric.startsWith("axis:"))),
    evaluation: new Set(entries.flatMap((entry) => entry.evaluation)),
  };
}

export const samplesOf = (run) => kept.get(run.id)?.samples ?? [];
export const has = (run, metric) => kept.get(run.id)?.metrics.includes(metric) ?? false;

// {lines, notes} of one metric: a line per run, or per rank or GPU.
export function linesOf(metric) {
  const chosen = selected();
  const lines = [];
  const missing = [];
  const [drawn, all] = [[], []];
  for (const run of chosen) {
    const entry = kept.get(run.id);
    const curves = [...entry?.curves.values() ?? []].filter((curve) => curve.metric === metric);
    for (const [index, curve] of curves.entries()) {
      const points = onAxis(entry, curve);
      if (!points) {
        missing.push(title(run));
        continue;
      }
      drawn.push(curve.x.length);
      all.push(curve.count);
      lines.push({
        name: curve.part ? `${title(run)}: ${curve.part}` : title(run), ...points,
        // With several runs selected, all ranks of a run share its style.
        style: style(styleOf(run.id) + (chosen.length === 1 ? index : 0)),
      });
    }
  }
  return { lines, notes: [...downsampled(drawn, all), ...notOnAxis([...new Set(missing)])] };
}

function downsampled(drawn, all) {
  const most = Math.max(0, ...all);
  return all.every((count, i) => count <= drawn[i]) ? []
    : [`Lines of up to ${number(most, 6)} points are downsampled to about 500: the lowest and the highest`
      + " point of each interval."];
}

// What says where a point lies on an axis.
const NEEDED = {
  step: "the step at each time", seconds: "the time of each step",
  tokens: "the number of tokens at each step", samples: "the number of samples at each step",
};

function notOnAxis(names) {
  if (!names.length) return [];
  const shown = names.length > 3 ? `${names.slice(0, 3).join(", ")} and ${names.length - 3} more`
    : names.join(", ");
  return [`Not drawn, because ${NEEDED[view.x]} is unknown: ${shown}.`];
}

// The points of a curve on the chosen axis; null if it is unknown where they lie.
function onAxis(entry, curve) {
  const axis = (name) => entry.curves.get(JSON.stringify([`axis:${name}`, ""]));
  let { x, y } = curve;
  if (curve.x_is === "seconds" && view.x !== "seconds") {
    const clock = axis("seconds");
    if (!clock) return null;
    [x, y] = mapped(x, y, clock.y, clock.x);
  }
  if (view.x === "step" || (curve.x_is === "seconds" && view.x === "seconds")) return { x, y };
  const other = axis(view.x);
  if (!other) return null;
  [x, y] = mapped(x, y, other.x, other.y);
  return { x, y };
}

// Points moved along x; those outside of the known range have no place.
function mapped(x, y, from, to) {
  const moved = x.map((value) => interpolate(from, to, value));
  const found = [...moved.keys()].filter((i) => moved[i] !== null);
  return [found.map((i) => moved[i]), found.map((i) => y[i])];
}

export const xName = () => AXES[view.x];
export const showX = (value) => (view.x === "seconds" ? (value ? duration(value) : "0")
  : number(value, 6));
