// Starts the page, switches tabs, and refreshes the visible tab periodically.

import * as cost from "./cost.js";
import { performance, training } from "./curves.js";
import * as demo from "./demo.js";
import { at, h, setText } from "./dom.js";
import { count } from "./format.js";
import { get, key, KeyRequired } from "./http.js";
import { onSelection, runs, update } from "./runs.js";
import * as scaling from "./scaling.js";

const VIEWS = { performance, scaling, training, cost, demo };
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
    await update();
    at("key-form").hidden = true;
    const live = runs.all.filter((run) => run.phase === "Running").length;
    setText(at("state"), `${count(runs.all.length, "run")}, ${live} running`);
    const problems = await VIEWS[view].refresh();
    showProblems([...runs.problems, ...problems]);
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

// Arrow keys, Home and End move between tabs; the URL fragment is the selected one.
function startTabs(changed) {
  const tabs = [...document.querySelectorAll('[role="tab"]')];
  const panel = (tab) => at(tab.getAttribute("aria-controls"));

  function select(tab, focus) {
    for (const other of tabs) {
      const isSelected = other === tab;
      other.setAttribute("aria-selected", String(isSelected));
      other.tabIndex = isSelected ? 0 : -1;
      panel(other).hidden = !isSelected;
    }
    if (focus) tab.focus();
    history.replaceState(null, "", `#${panel(tab).id}`);
    changed(panel(tab).id);
  }

  for (const [index, tab] of tabs.entries()) {
    tab.addEventListener("click", () => select(tab, false));
    tab.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: tabs.length - 1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      select(tabs[(moves[event.key] + tabs.length) % tabs.length], true);
    });
  }
  const named = tabs.find((tab) => `#${panel(tab).id}` === location.hash);
  select(named ?? tabs[0], false);
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
startTabs((name) => {
  view = name;
  refresh();
});
refresh();
