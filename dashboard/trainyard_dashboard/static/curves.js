// Tabs 1 and 3, Performance and Training: curves and text samples of the selected runs.

import { draw } from "./chart.js";
import { at, h, setText } from "./dom.js";
import { number } from "./format.js";
import { checkbox, histories, lines, runs, selected, slot, title, xName } from "./runs.js";
import { showTraces } from "./traces.js";
import { showUsage } from "./usage.js";

const PERFORMANCE = ["loss", "tokens_per_second", "samples_per_second", "rank_step_seconds"];
const TRAINING = ["loss", "eval_loss", "learning_rate", "grad_norm", "gpu_utilization",
  "gpu_memory_mib", "gpu_power_watts", "gpu_temperature"];
const GPU_CHARTS = [
  ["gpu_utilization", "GPU utilization", "Percent"],
  ["gpu_memory_mib", "GPU memory", "MiB"],
  ["gpu_power_watts", "GPU power", "Watts"],
  ["gpu_temperature", "GPU temperature", "°C"],
];
const NONE = "Unknown for the selected runs";
let listed = "";

export const performance = { refresh: refreshPerformance };
export const training = { refresh: refreshTraining };

async function refreshPerformance() {
  const data = await histories(PERFORMANCE);
  const loss = lines(data, "loss");
  const tokens = lines(data, "tokens_per_second");
  const rates = tokens.length ? tokens : lines(data, "samples_per_second");
  const ranks = lines(data, "rank_step_seconds");
  draw("performance-charts", {
    id: "loss", title: "Training loss", origin: "measured", x: xName(loss), y: "Loss (nats)",
    lines: loss, empty: `${NONE}.`,
  });
  draw("performance-charts", {
    id: "rate", title: "Throughput", origin: "measured", x: xName(rates), fromZero: true,
    y: tokens.length ? "Tokens per second" : "Samples per second", lines: rates,
    empty: `${NONE}.`,
  });
  draw("performance-charts", {
    id: "ranks", title: "Each rank's own time per step", origin: "measured", x: xName(ranks),
    y: "Seconds", fromZero: true, lines: ranks,
    empty: `${NONE}: a run logs it if it trains a recipe and at most 64 ranks; otherwise it`
      + " comes from Prometheus.",
  });
  at("performance-charts").dataset.ready = "true";
  showTraces();
  return [...new Set([...data.problems, ...await showUsage()])];
}

async function refreshTraining() {
  listRuns();
  const data = await histories(TRAINING);
  const loss = lines(data, "loss");
  const evaluation = lines(data, "eval_loss", { dash: "dot", mode: "lines+markers" })
    .map((line) => ({ ...line, name: `${line.name}, evaluation` }));
  draw("training-charts", {
    id: "losses", title: "Training and evaluation loss", origin: "measured", x: xName(loss),
    y: "Loss (nats)", lines: [...loss, ...evaluation], empty: `${NONE}.`,
  });
  for (const [metric, name] of [["learning_rate", "Learning rate"],
    ["grad_norm", "Gradient norm before clipping"]]) {
    const drawn = lines(data, metric);
    draw("training-charts", {
      id: metric, title: name, origin: "measured", x: xName(drawn),
      y: metric === "grad_norm" ? "Gradient norm" : "Learning rate", lines: drawn,
      empty: `${NONE}.`,
    });
  }
  for (const [metric, name, unit] of GPU_CHARTS) {
    const drawn = lines(data, metric);
    if (!drawn.length && metric !== "gpu_utilization") continue;
    draw("training-charts", {
      id: metric, title: drawn.length ? name : "GPUs", origin: "measured", x: xName(drawn), y: unit,
      lines: drawn, fromZero: true,
      empty: `${NONE}: GPU metrics come from a Prometheus that scrapes NVIDIA's DCGM exporter.`,
    });
  }
  showSamples(data);
  return data.problems;
}

function listRuns() {
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

function showSamples(data) {
  const articles = selected().flatMap((run) => {
    const texts = data.runs[run.id]?.samples ?? [];
    if (!texts.length) return [];
    const [newest, ...older] = [...texts].reverse();
    const block = (sample) => [h("h4", {}, `step ${number(sample.step, 6)}`),
      h("pre", {}, sample.text)];
    return [h("article", {}, h("h3", {}, title(run)), ...block(newest),
      older.length ? h("details", {}, h("summary", {}, `${older.length} earlier`),
        ...older.flatMap(block)) : null)];
  });
  const state = JSON.stringify(articles.map((article) => article.textContent));
  const box = at("samples");
  if (box.dataset.state === state) return;
  box.dataset.state = state;
  box.replaceChildren(...articles);
  if (!articles.length) {
    box.append(h("p", { class: "empty" }));
    setText(box.firstChild, "The selected runs have no text samples: set config.sample_steps to get"
      + " some.");
  }
}
