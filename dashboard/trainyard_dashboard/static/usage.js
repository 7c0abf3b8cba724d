// What the ranks and pods of the selected runs use now: tables below the charts of tab 1.

import { at, h, setText } from "./dom.js";
import { bytes, cores, count, percent } from "./format.js";
import { get } from "./http.js";
import { isFinished, isSelected, selected, title } from "./runs.js";

const rate = (value) => {
  const text = bytes(value);
  return text.endsWith("B") ? `${text}/s` : text;
};
const RANK_COLUMNS = [
  ["CPU cores", (rank) => cores(rank.cpu_cores)],
  ["Memory", (rank) => bytes(rank.memory_bytes)],
];
const GPU_COLUMNS = [
  ["GPU", (rank) => percent(rank.gpu_utilization)],
  ["GPU memory", (rank) => bytes(rank.gpu_memory_bytes)],
];
const POD_COLUMNS = [["Received", (pod) => rate(pod.received)], ["Sent", (pod) => rate(pod.sent)]];
const WHY = ["", (rank) => rank.why.join(", ")];

// Returns the problems of the request.
export async function showUsage() {
  const asked = selected().filter((run) => !isFinished(run));
  const answer = asked.length
    ? await get("api/usage", asked.map((run) => ["run", run.id])) : { runs: {}, problems: [] };
  const active = asked.filter((run) => isSelected(run.id)); // still, now that the answer is here
  const box = at("usage");
  const state = JSON.stringify([active.map((run) => [title(run), run.usage,
    run.peak_memory_bytes]), answer.runs]);
  if (box.dataset.state !== state) {
    box.dataset.state = state;
    box.replaceChildren(...active.map((run) => section(run, answer.runs[run.id])));
    if (!active.length) {
      box.append(h("p", { class: "empty" }));
      setText(box.firstChild, "None of the selected runs is active.");
    }
  }
  return answer.problems;
}

function section(run, usage) {
  const peak = run.peak_memory_bytes === null ? null
    : h("p", { class: "hint" }, `Most memory that a rank has used: ${bytes(run.peak_memory_bytes)}.`);
  return h("article", {}, h("h3", {}, title(run)), peak,
    ...(usage ? tables(run, usage) : unknown(run)));
}

// Without its ranks' figures: what its status says of them, and where they would come from.
function unknown(run) {
  const why = run.source === "local"
    ? "Unknown: no agent of this run answers with the figures of its ranks."
    : "The figures of each rank come from a Prometheus that scrapes the run's pods.";
  return [run.usage ? h("p", {}, run.usage) : null, h("p", { class: "empty" }, why)]
    .filter(Boolean);
}

function tables(run, { ranks, rank_count: rankCount, pods, pod_count: podCount }) {
  const columns = [...RANK_COLUMNS];
  const hasGpu = ranks.some((rank) => rank.gpu_memory_bytes !== null
    || rank.gpu_utilization !== null);
  if (hasGpu) columns.push(...GPU_COLUMNS);
  if (ranks.length < rankCount) columns.push(WHY);
  const name = title(run);
  const found = [table(`${name}: ranks`, shown(ranks.length, rankCount, "rank"), "Rank", columns,
    ranks, (rank) => String(rank.rank))];
  if (pods.length) {
    found.push(table(`${name}: pods`, shown(pods.length, podCount, "pod"), "Pod", POD_COLUMNS, pods,
      (pod) => pod.pod));
  }
  return [h("div", { class: "usage" }, ...found)];
}

const shown = (length, all, noun) => (length === all ? count(all, noun)
  : `${length} of ${count(all, noun)}: those with the lowest and highest values`);

function table(label, caption, first, columns, items, nameOf) {
  const head = [first, ...columns.map(([name]) => name)];
  return h("div", {}, h("p", { class: "hint" }, caption),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${label}: table` },
      h("table", { class: "plain", "aria-label": label },
        h("thead", {}, h("tr", {}, ...head.map((name) => (name
          ? h("th", { scope: "col" }, name) : h("td", {}))))),
        h("tbody", {}, ...items.map((item) => h("tr", {}, h("th", { scope: "row" }, nameOf(item)),
          ...columns.map(([, show]) => h("td", {}, show(item)))))))));
}
