// Tab 1: how the runs go, live.

import { draw } from "./chart.js";
import { at } from "./dom.js";
import { histories, lines, xName } from "./runs.js";

const METRICS = ["loss", "tokens_per_second", "samples_per_second", "rank_step_seconds"];

export async function refresh() {
  const found = await histories(METRICS);
  const loss = lines(found, "loss");
  const tokens = lines(found, "tokens_per_second");
  const rates = tokens.length ? tokens : lines(found, "samples_per_second");
  const ranks = lines(found, "rank_step_seconds");
  draw("performance-charts", {
    id: "loss", title: "Training loss", origin: "measured", x: xName(loss), y: "loss (nats)",
    lines: loss, empty: "No loss is known of the chosen runs.",
  });
  draw("performance-charts", {
    id: "rate", title: "Throughput", origin: "measured", x: xName(rates), fromZero: true,
    y: tokens.length ? "tokens per second" : "samples per second", lines: rates,
    empty: "No throughput is known of the chosen runs.",
  });
  draw("performance-charts", {
    id: "ranks", title: "Each rank's own work in a step", origin: "measured", x: xName(ranks),
    y: "seconds", fromZero: true, lines: ranks,
    empty: "Unknown for the chosen runs: it takes a run of this trainer with 64 ranks or fewer,"
      + " or a Prometheus.",
  });
  at("performance-charts").dataset.ready = "true";
  return found.problems;
}
