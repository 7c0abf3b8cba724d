// Tables of a run's page: attempts, evaluations, models and checkpoints, conditions, events.

import { between, timeOf } from "./dates.js";
import { cell, h, row } from "./dom.js";
import { bytes, number } from "./format.js";
import { nameOf } from "./metrics.js";

const MOST_METRICS = 12; // columns

// Cards on small screens, as all tables of the page. The first cell heads its row.
function list(label, names, rows) {
  if (!rows.length) return [];
  const head = names.map((name) => h("th", { scope: "col", role: "columnheader" }, name));
  return [h("table", { class: "cards", role: "table", "aria-label": label },
    h("thead", { role: "rowgroup" }, row(...head)),
    h("tbody", { role: "rowgroup" }, ...rows.map(([first, ...others]) => row(
      h("th", { scope: "row", role: "rowheader" }, first),
      ...others.map((value, i) => cell(names[i + 1], value ?? "–")),
    ))))];
}

export function attempts({ status }) {
  const newest = [...(status.attempts ?? [])].reverse();
  return list("Attempts", ["Attempt", "Outcome", "Started", "Took", "Nodes", "Steps", "Cause"],
    newest.map((one) => [
      String(one.number), outcome(one), timeOf(one.startTime), between(one.startTime, one.endTime),
      one.nodes === one.wantedNodes ? String(one.nodes) : `${one.nodes} of ${one.wantedNodes}`,
      steps(one), cause(one),
    ]));
}

function outcome({ outcome: ended, counted }) {
  if (!ended) return h("span", { class: "phase running" }, "Active");
  const note = counted === false ? h("span", { class: "note" }, " not counted") : null;
  return h("span", {}, h("span", { class: `phase ${ended.toLowerCase()}` }, ended), note);
}

function steps({ resumedFromStep: from, step: to }) {
  if (from === undefined && to === undefined) return null;
  const end = to === undefined ? "" : ` to ${number(to, 6)}`;
  return from === undefined ? `up to ${number(to, 6)}` : `from ${number(from, 6)}${end}`;
}

// The root cause, and which settings differ from those of the checkpoint.
function cause({ reason, message, pod, exitCode, changed = [] }) {
  const where = [
    pod && !(message ?? "").includes(pod) ? pod : "",
    exitCode === undefined ? "" : `exit code ${exitCode}`,
  ].filter(Boolean).join(", ");
  const said = [reason, message].filter(Boolean).join(": ");
  if (!said && !where && !changed.length) return null;
  return h("div", {}, said, where ? h("span", { class: "note" }, ` ${where}`) : null,
    changed.length ? h("div", { class: "changed" }, h("span", { class: "note" }, "Changed when it resumed:"),
      h("ul", {}, ...changed.map((change) => h("li", {}, h("code", {}, change))))) : null);
}

export function evaluations({ items }) {
  const names = [...new Set(items.flatMap(({ metrics }) => Object.keys(metrics)))]
    .slice(0, MOST_METRICS);
  return list("Evaluations", ["Step", ...names.map(nameOf)], items.map(({ step, metrics }) => [
    step === undefined ? "newest" : number(step, 6),
    ...names.map((name) => (Object.hasOwn(metrics, name) ? number(metrics[name], 4) : null)),
  ]));
}

// Models or checkpoints; `marks` are words by digest.
export function stored({ items }, marks) {
  return list("Stored", ["Step", "Saved", "Size", "Results", "Digest"], items.map((one) => {
    const words = Object.entries(marks)
      .filter(([, digest]) => digest && digest === one.digest).map(([word]) => word);
    const results = Object.entries(one.metrics)
      .map(([name, value]) => `${nameOf(name)} ${number(value, 4)}`).join(", ");
    return [
      h("span", {}, number(one.step, 8), ...words.flatMap((word) =>
        [" ", h("span", { class: "badge" }, word)])),
      one.created ? timeOf(one.created) : null,
      one.size_bytes === undefined ? null : bytes(one.size_bytes),
      one.problem || results || null,
      one.digest ? h("code", { title: one.digest }, one.digest.slice(0, 19)) : null,
    ];
  }));
}

// What `trainyard evaluate` has kept. `present` are the digests of all models that are there, null if
// not all are known.
export const scores = ({ items }, present) => list("Scores",
  ["Task", "Metric", "Score", "Standard error", "Samples", "Model"], items.map((one) => [
    one.task, one.metric, number(one.value, 4),
    one.error === undefined ? null : number(one.error, 2),
    one.complete ? number(one.samples, 8) : `${number(one.samples, 8)} (a part)`,
    h("span", {}, `step ${number(one.step, 8)}`,
      present?.has(one.digest) ?? true ? null : h("span", { class: "note" }, " no longer there")),
  ]));

export const conditions = (items) => list("Conditions",
  ["Condition", "Status", "Since", "Reason", "Message"], items.map((one) => [
    one.type, one.status, timeOf(one.lastTransitionTime), one.reason || null, one.message || null,
  ]));

export const events = ({ items }) => list("Events", ["Time", "Type", "Reason", "Message"],
  items.map((one) => [timeOf(one.time), one.type, one.reason,
    one.count > 1 ? `${one.message} (${one.count} times)` : one.message]));
