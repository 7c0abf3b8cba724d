// The tabs: arrow keys, Home and End move, the address remembers.

import { at } from "./dom.js";

export function startTabs(changed) {
  const tabs = [...document.querySelectorAll('[role="tab"]')];
  const panel = (tab) => at(tab.getAttribute("aria-controls"));

  function select(tab, focus) {
    for (const other of tabs) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      panel(other).hidden = !chosen;
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
