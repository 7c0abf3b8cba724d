// Tab 4, Cost: the cost of a training run on each hardware of the price file.

import { draw } from "./chart.js";
import { at, cell, debounced, h, headRow, options, row, setText } from "./dom.js";
import { count, duration, interval, money } from "./format.js";
import { get } from "./http.js";
import { runs, title } from "./runs.js";

const form = at("cost-form");
const field = form.elements;
const edited = new Map(); // prices changed on the page, by hardware
let costs = null; // the last response
let shownState = "";
let sizedFor = ""; // the basis whose size was entered

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
  const answer = await get("api/costs", parameters).catch((error) => {
    showProblem(error.message);
    return null;
  });
  if (answer === null) return;
  const state = JSON.stringify(answer);
  if (state === shownState) return;
  costs = answer;
  showProblem(costs.why_unknown ? `Unknown at this size: ${costs.why_unknown}.` : "");
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
const cost = (one) => price(one) * one.unit_hours.value;

function costInterval(one) {
  const [value, low, high] = ["value", "low", "high"].map((end) => price(one) * one.unit_hours[end]);
  return interval({ value, low, high }, (sum) => money(sum, costs.currency));
}

function showTable() {
  const names = ["Hardware", "Units", "Price per unit-hour", "Time", "Cost"];
  headRow(at("costs"), [[names[0], "entered"], [names[1], null], [names[2], "entered"],
    [names[3], "projected"], [names[4], "projected"]]);
  at("costs").tBodies[0].replaceChildren(...costs.rows.map((one) => {
    const input = h("input", { type: "number", min: "0", max: "1000000000", step: "any",
      value: Number(price(one).toFixed(4)), "aria-label": `Price per unit-hour: ${one.name}` });
    const total = h("strong");
    const range = h("small");
    const lowest = h("span", { class: "lowest" });
    const fill = () => {
      total.textContent = costs.too_wide ? "" : money(cost(one), costs.currency);
      range.textContent = ` ${costInterval(one)} `;
    };
    one.mark = () => {
      const least = Math.min(...costs.rows.map(cost));
      lowest.textContent = cost(one) === least ? "lowest" : "";
    };
    input.addEventListener("input", () => {
      if (!input.checkValidity() || input.value === "") return;
      edited.set(one.name, Number(input.value));
      fill();
      for (const other of costs.rows) other.mark();
      drawChart();
    });
    fill();
    const kind = { cloud: "cloud", spot: "spot", own: "own hardware" }[one.kind];
    const speed = one.speed === 1 ? "" : ` · ${one.speed}× the measured speed (entered)`;
    const lost = one.lost_share ? ` · ${Math.round(one.lost_share * 100)}% lost (entered)` : "";
    return row(
      h("th", { scope: "row", role: "rowheader" }, one.name,
        h("span", { class: "note" }, `${kind}${speed}${lost} · ${one.note}`)),
      cell(names[1], `${one.units} × ${count(one.unit_processes, "process", "processes")}`),
      cell("Price per unit-hour (entered)", input, ` ${costs.currency}`),
      cell("Time (projected)", costs.too_wide
        ? interval(one.hours, (hours) => duration(hours * 3600)) : duration(one.hours.value * 3600)),
      cell("Cost (projected)", total, range, lowest),
    );
  }));
  for (const one of costs.rows) one.mark();
}

function drawChart() {
  const { rows, currency, too_wide: wide } = costs;
  draw("cost-charts", {
    id: "costs", title: "Cost", origin: "projected", bars: true, x: currency,
    lines: [{ name: "cost", x: rows.map(cost), y: rows.map((one) => one.name),
      text: rows.map((one) => (wide ? costInterval(one) : money(cost(one), currency))),
      rangeOnly: wide,
      range: rows.map((one) => [one.unit_hours.low, one.unit_hours.high].map((n) => n * price(one))),
    }],
  });
}

form.addEventListener("input", debounced(() => calculate().catch((error) => showProblem(error.message))));
form.addEventListener("submit", (event) => event.preventDefault());
