// Starts the page, switches views, and refreshes the visible one periodically.

import * as cost from "./cost.js";
import { performance, training } from "./curves.js";
import * as demo from "./demo.js";
import { at, debounced, h, setText } from "./dom.js";
import { count } from "./format.js";
import { get, key, KeyRequired } from "./http.js";
import * as runPage from "./run_page.js";
import { focusRun } from "./run_table.js";
import { onSelection, runs, update } from "./runs.js";
import * as scaling from "./scaling.js";
import { change, current, go, onNavigation } from "./state.js";
import { onView, restoreView, view as curves, viewParameters } from "./view.js";

const VIEWS = { performance, scaling, training, cost, demo, run: runPage };
let view = "performance";
let pollSeconds = 5;
let timer = 0;
let stateLoaded = false;
let refreshing = false;
let pending = false; // another refresh was requested in the meantime

function showProblems(lines) {
  const box = at("problems");
  box.hidden = lines.length === 0;
  if (box.dataset.state === lines.join("\n")) return;
  box.dataset.state = lines.join("\n");
  box.replaceChildren(...lines.map((line) => h("li", {}, line)));
}

async function refresh() {
  if (refreshing) {
    pending = true;
    return;
  }
  refreshing = true;
  clearTimeout(timer);
  try {
    await loadState();
    await update(view);
    at("key-form").hidden = true;
    const live = runs.all.filter((run) => run.phase === "Running").length;
    setText(at("state"), `${count(runs.all.length, "run")}, ${live} running`);
    const problems = await VIEWS[view].refresh();
    showProblems([...new Set([...runs.problems, ...problems])]);
  } catch (error) {
    if (error instanceof KeyRequired) askForKey(error);
    else showProblems([error.message]);
  } finally {
    refreshing = false;
  }
  if (pending) {
    pending = false;
    refresh();
  } else if (!document.hidden) {
    timer = setTimeout(refresh, pollSeconds * 1000);
  }
}

function askForKey(error) {
  at("key-form").hidden = false;
  setText(at("state"), key.get() ? "The API key is not valid." : error.message);
  if (document.activeElement !== at("key")) at("key").focus();
  pending = false;
}

// What never changes while the server runs; retried until it succeeds.
async function loadState() {
  if (stateLoaded) return;
  const state = await get("api/state");
  pollSeconds = state.poll_seconds;
  setText(at("sources"), `Data from ${state.sources.join(" and ")}`);
  stateLoaded = true;
}

const tabs = [...document.querySelectorAll('[role="tab"]')];
const panelOf = (tab) => at(tab.getAttribute("aria-controls"));

// Arrow keys, Home and End move between tabs.
function startTabs() {
  for (const [index, tab] of tabs.entries()) {
    tab.addEventListener("click", () => open(tab));
    tab.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: tabs.length - 1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      open(tabs[(moves[event.key] + tabs.length) % tabs.length]);
    });
  }
}

// From a run's page back to where the reader was in the table.
function open(tab) {
  const { view: from, parameters } = current();
  if (from === "run") go(panelOf(tab).id, runPage.tableParameters());
  else go(panelOf(tab).id, parameters);
  tab.focus();
}

// Shows what the URL names: a tab, or the page of a run.
function showView({ view: named, parameters }) {
  const before = view;
  const isRun = named === "run";
  const shown = isRun ? null : tabs.find((tab) => panelOf(tab).id === named) ?? tabs[0];
  for (const tab of tabs) {
    const isSelected = tab === shown;
    tab.setAttribute("aria-selected", String(isSelected));
    tab.tabIndex = isSelected || (isRun && tab === tabs[0]) ? 0 : -1;
    panelOf(tab).hidden = !isSelected;
  }
  at("run").hidden = !isRun;
  view = isRun ? "run" : panelOf(shown).id;
  runPage.showRun(isRun ? parameters.get("id") ?? "" : null);
  if (before === "run" && view === "performance") focusRun(runPage.lastShown());
  refresh();
}

// How curves are shown, as far as it differs from the defaults, is in the address. A change is there
// only a moment later: a slider makes hundreds of them, more than browsers write into an address.
const CURVES = Object.keys(curves);
const inAddress = () => JSON.stringify(CURVES.map((name) => current().parameters.get(name)));
let agreed = JSON.stringify(CURVES.map(() => null)); // what the address said, or was told, last

const tellAddress = debounced(() => {
  if (current().view === "run") return; // its link has no wishes about curves
  change({ ...Object.fromEntries(CURVES.map((name) => [name, ""])),
    ...Object.fromEntries(viewParameters()) });
  agreed = inAddress();
}, 200);

function followAddress({ view: named, parameters }) {
  if (named === "run") return;
  if (inAddress() === agreed) return tellAddress();
  agreed = inAddress();
  restoreView(parameters);
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(at("key").value);
  refresh();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});
onSelection(refresh);
onView(tellAddress);
startTabs();
onNavigation(followAddress);
onNavigation(showView);
