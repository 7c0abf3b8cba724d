// The page of one run: what its data source knows of it. All of it is shown as text.

import { between, timeOf } from "./dates.js";
import { at, h, setText } from "./dom.js";
import { bytes, count, duration, loss, number, throughput, UNKNOWN } from "./format.js";
import { get, KeyRequired } from "./http.js";
import { refreshLog, showLogs } from "./run_log.js";
import { attempts, conditions, evaluations, events, scores, stored } from "./run_parts.js";
import { isFinished, selectOnly, selected } from "./runs.js";
import { go, lastOf } from "./state.js";
import { traceLink } from "./traces.js";

let shown = null; // id of the run
let last = null; // of the run whose page was shown last

// Another run's page, or with null none.
export function showRun(id) {
  if (id === null) {
    document.title = "Trainyard: dashboard";
  } else if (id !== shown) {
    clear();
    setText(at("run-name"), id.split("/").pop());
    at("run-name").focus();
    document.title = `${id.split("/").pop()}: Trainyard`;
    last = id;
  }
  shown = id;
}

export const lastShown = () => last;
export const tableParameters = () => lastOf("performance"); // what the table showed before

function clear() {
  for (const id of ["run-note", "run-facts", "run-parts"]) at(id).replaceChildren();
  delete at("run-facts").dataset.state;
  at("run-log").hidden = true;
  setText(at("run-phase"), "");
}

export async function refresh() {
  const id = shown;
  const details = await get("api/run", [["run", id]]).catch((error) => {
    if (id === shown && !(error instanceof KeyRequired)) clear();
    throw error;
  });
  if (id !== shown) return []; // the reader has gone on
  const { run } = details;
  setText(at("run-name"), run.name);
  setText(at("run-phase"), run.phase ?? UNKNOWN);
  at("run-phase").className = `phase ${(run.phase ?? "").toLowerCase()}`;
  setText(at("run-note"), run.message);
  showFacts(details);
  for (const [name, build] of PARTS) showPart(name, build, details);
  showLogs(details);
  await refreshLog();
  return details.warnings;
}

at("all-runs").addEventListener("click", () => go("performance", tableParameters()));
at("run-charts").addEventListener("click", () => {
  selectOnly(shown);
  const parameters = new URLSearchParams(tableParameters());
  parameters.delete("select");
  for (const { id } of selected()) parameters.append("select", id);
  go("performance", parameters);
});

// ------------------------------------------------------------------ facts

function showFacts({ run, status, manifest, serve }) {
  const step = run.step === undefined ? null
    : run.total_steps ? `${number(run.step, 6)} of ${number(run.total_steps, 6)}`
      : number(run.step, 6);
  const evaluation = run.eval_loss === undefined ? null : loss(run.eval_loss);
  const labels = Object.entries(run.labels).map(([name, value]) => `${name}=${value}`).join(", ");
  const facts = [
    ["Recipe", run.recipe ?? (status.phase ? "a script" : null)],
    ["Namespace", run.namespace], ["Source", run.source], ["Labels", labels],
    ["Started", timeOf(run.start_time)],
    ["Took", isFinished(run) && !run.completion_time ? null
      : between(run.start_time, run.completion_time)],
    ["Step", step], ["Time left (projected)", isFinished(run) ? null : duration(run.eta_seconds)],
    ["Loss", run.loss === undefined ? null : loss(run.loss)], ["Evaluation loss", evaluation],
    ["Throughput", throughput(run)],
    ["Mean step", status.stepSeconds ? duration(status.stepSeconds.mean) : null],
    ["Processes", text(run.processes)], ["Restarts", text(run.restarts)],
    ["Disruptions", status.disruptions ? text(status.disruptions) : null],
    ["Most memory of a rank", run.peak_memory_bytes ? bytes(run.peak_memory_bytes) : null],
    ["Use of its ranks", run.usage], ["Branch of", status.startedFrom],
    ["Manifest", manifest], ["To serve its model", serve ? h("code", {}, serve) : null],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "");
  replace(at("run-facts"), facts.map(([name, value]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

const text = (value) => (value === null || value === undefined ? null : String(value));

// ------------------------------------------------------------------ parts

const PARTS = [
  ["Attempts", (details) => attempts(details)],
  ["Evaluations", ({ evaluations: part }) => evaluations(part)],
  ["Scores", ({ scores: part, models }) =>
    scores(part, models.note ? null : new Set(models.items.map(({ digest }) => digest)))],
  ["Models", ({ models, status }) => stored(models, {
    last: status.model?.digest, best: status.bestModel?.digest,
  })],
  ["Checkpoints", ({ checkpoints, status }) => stored(checkpoints, {
    newest: status.lastCheckpoint?.digest,
  })],
  ["Conditions", ({ status }) => conditions(status.conditions ?? [])],
  ["Events", ({ events: part }) => events(part)],
  ["Settings", ({ spec }) => (spec
    ? [h("pre", { tabindex: "0", role: "region", "aria-label": "Settings as YAML" }, spec)] : null)],
  ["Text samples", ({ samples }) => samples.items.flatMap(({ step, text: said }) =>
    [h("h4", {}, `step ${number(step, 6)}`), h("pre", {}, said)])],
  ["Traces of steps", ({ traces, run }) => (traces.items.length ? [h("ul", {},
    ...traces.items.map((path) => h("li", {}, traceLink(run, path))))] : [])],
];
const NOTES = {
  Evaluations: "evaluations", Scores: "scores", Models: "models", Checkpoints: "checkpoints", Events: "events",
  "Text samples": "samples", "Traces of steps": "traces",
};
const OPEN = new Set(["Attempts", "Evaluations", "Scores", "Models", "Settings"]);

// A part that says nothing is left out; one of which nothing is known says so.
function showPart(name, build, details) {
  const id = `run-${name.toLowerCase().replaceAll(" ", "-")}`;
  const nodes = build(details);
  const note = details[NOTES[name]]?.note;
  const old = at(id);
  if (nodes === null || (!nodes.length && !note && !old)) return;
  const card = old ?? h("details", { class: "card part", id, open: OPEN.has(name) },
    h("summary", {}, h("h3", {}, name), " ", h("span", { class: "hint" })),
    h("div", { class: "content" }));
  setText(card.querySelector(".hint"), amount(details[NOTES[name]]));
  const content = [...nodes];
  if (note) content.push(h("p", { class: "empty" }, note));
  if (!content.length) content.push(h("p", { class: "empty" }, "None."));
  replace(card.querySelector(".content"), content);
  if (!old) at("run-parts").append(card);
}

const amount = (part) => (part?.items.length ? count(part.items.length, "entry", "entries") : "");

// New content only if it differs: the reader may be selecting text, or be scrolled down in it.
function replace(element, nodes) {
  const html = h("div", {}, ...nodes);
  if (element.dataset.state === html.innerHTML) return;
  element.dataset.state = html.innerHTML;
  element.replaceChildren(...nodes);
}
