// Tab 3: what the models learn. Several runs are laid over one another.

import { draw } from "./chart.js";
import { at, h, setText } from "./dom.js";
import { number } from "./format.js";
import { checkbox, histories, lines, runs, selected, slot, title, xName } from "./runs.js";

const METRICS = ["loss", "eval_loss", "learning_rate", "grad_norm", "gpu_utilization",
  "gpu_memory_mib", "gpu_power_watts", "gpu_temperature"];
const CHARTS = [
  ["learning_rate", "Learning rate", "learning rate"],
  ["grad_norm", "Gradient norm, before clipping", "gradient norm"],
];
const GPU = [
  ["gpu_utilization", "GPU utilization", "percent"],
  ["gpu_memory_mib", "GPU memory", "MiB"],
  ["gpu_power_watts", "GPU power", "watts"],
  ["gpu_temperature", "GPU temperature", "°C"],
];
let listed = "";

export async function refresh() {
  list();
  const found = await histories(METRICS);
  const loss = lines(found, "loss");
  const held = lines(found, "eval_loss", { dash: "dot", mode: "lines+markers" })
    .map((line) => ({ ...line, name: `${line.name}, held out` }));
  draw("training-charts", {
    id: "losses", title: "Loss, in training and held out", origin: "measured", x: xName(loss),
    y: "loss (nats)", lines: [...loss, ...held], empty: "No loss is known of the chosen runs.",
  });
  for (const [metric, name, unit] of CHARTS) {
    const drawn = lines(found, metric);
    draw("training-charts", {
      id: metric, title: name, origin: "measured", x: xName(drawn), y: unit, lines: drawn,
      empty: `Unknown: no source has the ${unit} of the chosen runs.`,
    });
  }
  for (const [metric, name, unit] of GPU) {
    const drawn = lines(found, metric);
    if (!drawn.length && metric !== "gpu_utilization") continue;
    draw("training-charts", {
      id: metric, title: drawn.length ? name : "GPUs", origin: "measured", x: xName(drawn), y: unit,
      lines: drawn, fromZero: true,
      empty: "Unknown: GPU metrics come from a Prometheus that scrapes NVIDIA's DCGM exporter.",
    });
  }
  samples(found);
  return found.problems;
}

function list() {
  const state = JSON.stringify(runs.all.map((run) => run.id));
  if (state === listed) return;
  listed = state;
  const field = at("compare");
  for (const old of field.querySelectorAll("label")) old.remove();
  for (const run of runs.all.slice(0, 60)) {
    const swatch = h("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = `var(--line-${slot(run.id) % 8})`;
    field.append(h("label", {}, checkbox(run), swatch, title(run)));
  }
}

function samples(found) {
  const blocks = selected().flatMap((run) => {
    const texts = found.runs[run.id]?.samples ?? [];
    if (!texts.length) return [];
    const [newest, ...older] = [...texts].reverse();
    const quote = (sample) => [h("h4", {}, `step ${number(sample.step, 6)}`),
      h("pre", {}, sample.text)];
    return [h("article", {}, h("h3", {}, title(run)), ...quote(newest),
      older.length ? h("details", {}, h("summary", {}, `${older.length} earlier`),
        ...older.flatMap(quote)) : null)];
  });
  const state = JSON.stringify(blocks.map((block) => block.textContent));
  const box = at("samples");
  if (box.dataset.state === state) return;
  box.dataset.state = state;
  box.replaceChildren(...blocks);
  if (!blocks.length) {
    box.append(h("p", { class: "empty" }));
    setText(box.firstChild, "No samples are known of the chosen runs: config.sample_steps asks"
      + " for them.");
  }
}
