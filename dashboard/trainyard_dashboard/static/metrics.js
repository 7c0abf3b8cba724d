// What the page knows of metrics: their titles, units and order. Of others it shows the name, which
// may be anything, such as "" or "constructor": names are never keys of plain objects.

import { bytes, duration, number, percent } from "./format.js";

const exact = (value) => number(value, 4);
const seconds = (value) => (value < 1e-3 ? exact(value) : duration(value));

// Title, name of the y axis, format of a value, and whether the axis begins at 0.
const KNOWN = new Map(Object.entries({
  loss: ["Training loss", "Loss (nats)", exact, false],
  eval_loss: ["Evaluation loss", "Loss (nats)", exact, false],
  accuracy: ["Accuracy in evaluation", "Share of samples", percent, false],
  perplexity: ["Perplexity in evaluation", "Perplexity", exact, false],
  tokens_per_second: ["Throughput in tokens", "Tokens per second", exact, true],
  samples_per_second: ["Throughput in samples", "Samples per second", exact, true],
  step_seconds: ["Time per step", "Seconds", seconds, true],
  rank_step_seconds: ["Each rank's own time per step", "Seconds", seconds, true],
  learning_rate: ["Learning rate", "Learning rate", exact, false],
  grad_norm: ["Gradient norm before clipping", "Gradient norm", exact, false],
  peak_memory_bytes: ["Most memory used by rank 0", "Bytes", bytes, true],
  gpu_memory_bytes: ["Most GPU memory allocated by rank 0", "Bytes", bytes, true],
  rank_memory_bytes: ["Memory of each rank", "Bytes", bytes, true],
  gpu_utilization: ["GPU utilization", "Percent", exact, true],
  gpu_memory_mib: ["GPU memory", "MiB", exact, true],
  gpu_power_watts: ["GPU power", "Watts", exact, true],
  gpu_temperature: ["GPU temperature", "°C", exact, true],
}));
const ORDER = [...KNOWN.keys()];

export const GPU = ["gpu_utilization", "gpu_memory_mib", "gpu_power_watts", "gpu_temperature"];

// The name as the page shows it: never blank.
export const nameOf = (metric) => (metric.trim() ? metric : "(no name)");

// {title, y, format, fromZero} of a metric.
export function describe(metric, isEvaluation = false) {
  const words = metric.replaceAll("_", " ").trim();
  const named = words || nameOf(metric); // "__" has a name, but no words
  const plain = named[0].toUpperCase() + named.slice(1);
  const [title, y, format, fromZero] = KNOWN.get(metric)
    ?? [isEvaluation ? `${plain} in evaluation` : plain, named, exact, false];
  return { title, y, format, fromZero };
}

// Losses first, then the other evaluations, then the rest as above, then unknown ones by name.
export function inOrder(metrics, evaluation) {
  const place = (metric) => {
    if (metric === "loss" || metric === "eval_loss") return ORDER.indexOf(metric);
    if (evaluation.has(metric)) return 2;
    return ORDER.includes(metric) ? 3 + ORDER.indexOf(metric) : 3 + ORDER.length;
  };
  return [...metrics].sort((a, b) => place(a) - place(b) || a.localeCompare(b));
}
