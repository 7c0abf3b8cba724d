// A piece of each selected run's line, beside its name.

import { h } from "./dom.js";
import { assign, style, styleOf } from "./styles.js";
import { sample } from "./svg.js";

export const runSwatch = (id) => h("span", { class: "swatch", "aria-hidden": "true", "data-run": id });

// Shows the lines of these runs; those of other runs have none.
export function paintSwatches(ids) {
  assign(ids);
  const selected = new Set(ids);
  for (const swatch of document.querySelectorAll(".swatch")) {
    const id = swatch.dataset.run;
    const wanted = selected.has(id) ? String(styleOf(id)) : "";
    if (swatch.dataset.style === wanted) continue;
    swatch.dataset.style = wanted;
    swatch.replaceChildren(...(wanted ? [sample({ style: style(styleOf(id)) })] : []));
  }
}
