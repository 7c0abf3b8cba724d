// Starts the page and keeps it current.

import * as cost from "./cost.js";
import * as demo from "./demo.js";
import { at, h, setText } from "./dom.js";
import { get, key, KeyNeeded } from "./http.js";
import * as performance from "./performance.js";
import { onChoice, runs, update } from "./runs.js";
import * as scaling from "./scaling.js";
import { startTabs } from "./tabs.js";
import * as training from "./training.js";

const VIEWS = { performance, scaling, training, cost, demo };
let view = "performance";
let pollSeconds = 5;
let timer = 0;
let described = false;
let running = false;
let again = false;

function problems(lines) {
  const box = at("problems");
  box.hidden = lines.length === 0;
  if (box.dataset.state === lines.join("\n")) return;
  box.dataset.state = lines.join("\n");
  box.replaceChildren(...lines.map((line) => h("li", {}, line)));
}

async function look() {
  if (running) {
    again = true;
    return;
  }
  running = true;
  clearTimeout(timer);
  try {
    await describe();
    await update();
    at("key-form").hidden = true;
    const live = runs.all.filter((run) => run.phase === "Running").length;
    setText(at("state"), `${runs.all.length} runs, ${live} running`);
    const found = await VIEWS[view].refresh();
    problems([...runs.problems, ...found]);
  } catch (error) {
    if (error instanceof KeyNeeded) askForKey(error);
    else problems([error.message]);
  } finally {
    running = false;
  }
  if (again) {
    again = false;
    look();
  } else if (!document.hidden) {
    timer = setTimeout(look, pollSeconds * 1000);
  }
}

function askForKey(error) {
  at("key-form").hidden = false;
  setText(at("state"), key.get() ? "That key is not the one." : error.message);
  if (document.activeElement !== at("key")) at("key").focus();
  again = false;
}

// What never changes while the server lives; asked for until it is told.
async function describe() {
  if (described) return;
  const state = await get("api/state");
  pollSeconds = state.poll_seconds;
  setText(at("sources"), `From ${state.sources.join(" and ")}.`);
  described = true;
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(at("key").value);
  look();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) look();
});
onChoice(look);
startTabs((name) => {
  view = name;
  look();
});
look();
