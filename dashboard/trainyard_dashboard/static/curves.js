// Tabs 1 and 3, Performance and Training: curves and text samples of the selected runs.

import { createBoard } from "./board.js";
import { at, h, setText } from "./dom.js";
import { number } from "./format.js";
import { has, samplesOf } from "./history.js";
import { GPU } from "./metrics.js";
import { checkbox, runs, selected, title } from "./runs.js";
import { paintSwatches, runSwatch } from "./swatches.js";
import { showTraces } from "./traces.js";
import { showUsage } from "./usage.js";

const RATES = ["tokens_per_second", "samples_per_second"];
const PERFORMANCE = ["loss", ...RATES, "rank_step_seconds"];
let listed = "";

export const performance = { refresh: refreshPerformance };
export const training = { refresh: refreshTraining };

// Samples are shown where a run has no tokens, so that no run is missing.
const hasOnlySamples = () => selected().some((run) =>
  has(run, "samples_per_second") && !has(run, "tokens_per_second"));

const performanceBoard = createBoard("performance-charts", {
  asked: PERFORMANCE,
  isDefault: (metric, evaluation) => evaluation.has(metric)
    || (PERFORMANCE.includes(metric) && (metric !== "samples_per_second" || hasOnlySamples())),
});
const trainingBoard = createBoard("training-charts", {
  asked: ["loss", ...GPU],
  isDefault: (metric) => !RATES.includes(metric) && metric !== "rank_step_seconds"
    && metric !== "rank_memory_bytes",
});

async function refreshPerformance() {
  const problems = await performanceBoard.refresh();
  showTraces();
  return [...new Set([...problems, ...await showUsage()])];
}

async function refreshTraining() {
  listRuns();
  const problems = await trainingBoard.refresh();
  showSamples();
  return [...new Set(problems)];
}

function listRuns() {
  const state = JSON.stringify(runs.all.map((run) => run.id));
  if (state === listed) return;
  listed = state;
  const field = at("compare");
  for (const old of field.querySelectorAll("label")) old.remove();
  for (const run of runs.all.slice(0, 60)) {
    field.append(h("label", {}, checkbox(run), runSwatch(run.id), title(run)));
  }
  paintSwatches(selected().map((run) => run.id));
}

function showSamples() {
  const articles = selected().flatMap((run) => {
    const texts = samplesOf(run);
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
