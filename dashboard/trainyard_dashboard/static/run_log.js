// The newest lines of a run's output, of the attempt and node that the reader chooses.

import { at, options, setText } from "./dom.js";
import { get } from "./http.js";

const select = at("run-log-name");
const box = at("run-log-text");
let run = null;

export function showLogs({ run: { id }, logs }) {
  if (run !== id) {
    select.replaceChildren(); // a choice is for one run
    setText(box, "");
  }
  run = id;
  at("run-log").hidden = false;
  options(select, logs.items.map((name) => {
    const [attempt, node] = name.split("-");
    return [name, `attempt ${attempt}, node ${node}`];
  }));
  select.hidden = logs.items.length === 0;
  if (!logs.items.length) show({ text: "", note: logs.note });
}

export async function refreshLog() {
  const [name, of] = [select.value, run];
  if (!name) return;
  const log = await get("api/log", [["run", of], ["name", name]])
    .catch((error) => ({ text: "", note: error.message }));
  if (name === select.value && of === run) show(log);
}

// Stays at the end, unless the reader has scrolled up.
function show({ text, note }) {
  const isAtEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 4;
  setText(at("run-log-note"), note);
  box.hidden = text === "";
  if (box.textContent === text) return;
  box.textContent = text;
  if (isAtEnd) box.scrollTop = box.scrollHeight;
}

select.addEventListener("change", () => {
  setText(box, "");
  refreshLog();
});
