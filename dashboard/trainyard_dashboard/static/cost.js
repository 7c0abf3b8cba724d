// Tab 4, Cost: the cost of a training run on each hardware of the price file.

import { draw } from "./chart.js";
import { at, cell, debounced, h, headRow, options, row, setText } from "./dom.js";
import { count, duration, interval, money } from "./format.js";
import { get } from "./http.js";
import { runs, title } from "./runs.js";
import { style } from "./styles.js";

const form = at("cost-form");
const field = form.elements;
const edited = new Map(); // prices changed on the page, by hardware
const speeds = new Map(); // as are these
let costs = null; // the last response
let shownState = "";
let sizedFor = ""; // the basis whose size was entered
let wanted = ""; // what was asked for last: answers to other questions are outdated

export async function refresh() {
  const { studies, problems } = await get("api/studies");
  const measured = runs.all.filter((run) => run.processes !== null && run.step)
    .sort((a, b) => (b.phase === "Succeeded") - (a.phase === "Succeeded"));
  const bases = [
    ...studies.flatMap((study) => study.configurations.map((one, i) =>
      [JSON.stringify({ study: study.id, configuration: i, unit: one.unit, size: one.sizes.at(-1) }),
        `study ${study.name}${one.label === study.name ? "" : `: ${one.label}`} (measured: ${one.sizes.join(", ")})`])),
    ...measured.map((run) => [
      JSON.stringify({ run: run.id, size: run.processes }),
      `run ${title(run)}, at ${count(run.processes, "process", "processes")} only`]),
  ];
  options(field.basis, bases);
  form.hidden = bases.length === 0;
  at("no-basis").hidden = bases.length > 0;
  at("cost-result").hidden = bases.length === 0 || costs === null;
  if (bases.length) await calculate();
  return problems;
}

async function calculate() {
  const basis = JSON.parse(field.basis.value);
  if (sizedFor !== field.basis.value) { // a run has one size only
    sizedFor = field.basis.value;
    if (basis.run) field.processes.value = basis.size;
    field.processes.readOnly = Boolean(basis.run);
  }
  if (!form.checkValidity()) return;
  const parameters = [
    ...(basis.run ? [["run", basis.run]]
      : [["study", basis.study], ["configuration", basis.configuration]]),
    ["processes", field.processes.value], ["budget", field.budget.value * 1e6],
  ];
  const question = JSON.stringify(parameters);
  wanted = question;
  const answer = await get("api/costs", parameters).catch((error) => {
    if (question === wanted) showProblem(error.message);
    return null;
  });
  if (answer === null || question !== wanted) return;
  const state = JSON.stringify(answer);
  if (state === shownState) return;
  costs = answer;
  showProblem(costs.why_unknown ? `The cost at this size is unknown: ${costs.why_unknown}.` : "");
  form.querySelector(".budget-name").textContent = `Budget, million ${costs.unit}`;
  at("price-file").replaceChildren(...(costs.is_example
    ? ["These are example prices, not offers. ",
      h("a", { href: "static/prices.yaml", download: "prices.yaml" }, "Download the file"),
      ", enter your own prices, and start the dashboard with --prices FILE."]
    : [`Prices from ${costs.file}.`]));
  showTable();
  drawChart();
  shownState = state;
}

function showProblem(problem) {
  at("cost-problem").hidden = !problem;
  setText(at("cost-problem"), problem);
  at("cost-result").hidden = Boolean(problem);
  if (problem) shownState = "";
}

const price = (one) => edited.get(one.name) ?? one.unit_hour;
const speed = (one) => speeds.get(one.name) ?? one.speed;
const ENDS = ["value", "low", "high"];

// An interval of the hours, or of the cost; null if it is unknown how fast the hardware is.
function scaled(one, factor) {
  if (!speed(one)) return null;
  return Object.fromEntries(ENDS.map((end) =>
    [end, (one.hours_at_speed_1[end] / speed(one)) * factor]));
}
const hours = (one) => scaled(one, 1);
const cost = (one) => scaled(one, one.units * price(one));

function costInterval(one) {
  return interval(cost(one), (sum) => money(sum, costs.currency));
}

function entered(one, map, value, name, changed) {
  const input = h("input", { type: "number", min: "0", max: "1000000000", step: "any",
    value: value === null ? "" : Number(value.toPrecision(6)), "aria-label": `${name}: ${one.name}` });
  input.addEventListener("input", () => {
    if (!input.checkValidity()) return;
    if (input.value === "") map.delete(one.name);
    else map.set(one.name, Number(input.value));
    changed();
  });
  return input;
}

const NAMES = ["Hardware", "Units", "Price per unit-hour", "Relative speed", "Time", "Cost"];

function showTable() {
  const projected = ["Time", "Cost"];
  headRow(at("costs"), NAMES.map((name) => [name, name === "Units" ? null
    : projected.includes(name) ? "projected" : "entered"]));
  const rows = costs.rows.map((one) => hardwareRow(one, () => {
    for (const { fill } of rows) fill();
    drawChart();
    showUnfounded();
  }));
  showUnfounded();
  at("costs").tBodies[0].replaceChildren(...rows.map(({ element }) => element));
}

// Why some hardware has no cost.
function showUnfounded() {
  const reasons = new Set(costs.rows.filter((one) => !cost(one)).map((one) => one.why_unknown));
  at("cost-unfounded").hidden = reasons.size === 0;
  setText(at("cost-unfounded"), [...reasons].map((why) => `Some costs are unknown: ${why}.`).join(" "));
}

function hardwareRow(one, changed) {
  const [total, range, time] = [h("strong"), h("small"), h("span")];
  const lowest = h("span", { class: "lowest" });
  const fill = () => {
    const sum = cost(one);
    setText(total, sum && !costs.too_wide ? money(sum.value, costs.currency) : "");
    setText(range, sum ? ` ${costInterval(one)} ` : "unknown");
    const least = Math.min(...costs.rows.map((other) => cost(other)?.value ?? Infinity));
    setText(lowest, sum?.value === least ? "lowest" : "");
    const text = (value) => duration(value * 3600);
    setText(time, !sum ? "unknown" : costs.too_wide ? interval(hours(one), text) : text(hours(one).value));
  };
  fill();
  const kind = { cloud: "cloud", spot: "spot", own: "own hardware" }[one.kind];
  const lost = one.lost_share ? ` · ${Math.round(one.lost_share * 100)}% lost (entered)` : "";
  const idle = one.units * one.unit_processes - costs.processes;
  const element = row(
    h("th", { scope: "row", role: "rowheader" }, one.name,
      h("span", { class: "note" }, `${kind}${lost} · ${one.note}`)),
    cell(NAMES[1], `${one.units} × ${count(one.unit_processes, "process", "processes")}`,
      idle ? h("span", { class: "note" }, `${idle} of them idle`) : null),
    cell("Price per unit-hour (entered)",
      entered(one, edited, price(one), "Price per unit-hour", changed), ` ${costs.currency}`),
    cell("Relative speed (entered)", entered(one, speeds, speed(one), "Relative speed", changed), " ×"),
    cell("Time (projected)", time),
    cell("Cost (projected)", total, range, lowest),
  );
  return { element, fill };
}

function drawChart() {
  const { currency, too_wide: wide } = costs;
  const rows = costs.rows.filter(cost);
  draw("cost-charts", {
    id: "costs", title: "Cost", origin: "projected", bars: true, x: currency,
    empty: "Unknown until you enter the speed of at least one kind of hardware, relative to the hardware"
      + " that was measured.",
    lines: [{ name: "cost", x: rows.map((one) => cost(one).value), y: rows.map((one) => one.name),
      text: rows.map((one) => (wide ? costInterval(one) : money(cost(one).value, currency))),
      rangeOnly: wide, style: style(0),
      range: rows.map((one) => [cost(one).low, cost(one).high]),
    }],
  });
}

form.addEventListener("input", debounced(() => calculate().catch((error) => showProblem(error.message))));
form.addEventListener("submit", (event) => event.preventDefault());
