// The newest traces of the selected runs: files of this machine as links, others by their paths.

import { at, h } from "./dom.js";
import { key } from "./http.js";
import { selected, title } from "./runs.js";

export function showTraces() {
  const traced = selected().filter((run) => run.profile);
  const box = at("traces");
  const state = JSON.stringify(traced.map((run) => [run.id, run.profile, key.get() !== ""]));
  if (box.dataset.state === state) return;
  box.dataset.state = state;
  box.hidden = traced.length === 0;
  box.querySelector("ul").replaceChildren(...traced.map((run) =>
    h("li", {}, `${title(run)}: `, traceLink(run, run.profile))));
}

// A link can't carry the API key.
export function traceLink(run, path) {
  if (run.source !== "local" || key.get()) {
    return h("span", {}, `${path} in the run's directory`);
  }
  const query = new URLSearchParams({ run: run.id, path });
  return h("a", { href: `api/trace?${query}`, download: true }, path);
}
