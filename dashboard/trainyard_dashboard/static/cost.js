// Tab 4: what a training costs on each hardware of the price file.

import { draw } from "./chart.js";
import { at, cell, h, headRow, options, paused, row, setText } from "./dom.js";
import { duration, interval, money } from "./format.js";
import { get } from "./http.js";
import { runs, title } from "./runs.js";

const form = at("cost-form");
const field = form.elements;
const tried = new Map(); // prices tried out, by the hardware's name
let found = null;
let asked = "";
let sized = "";

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
      `run ${title(run)}, with its ${run.processes} process${run.processes > 1 ? "es" : ""} only`]),
  ];
  options(field.basis, bases);
  form.hidden = bases.length === 0;
  at("no-basis").hidden = bases.length > 0;
  at("cost-result").hidden = bases.length === 0 || found === null;
  if (bases.length) await calculate();
  return problems;
}

async function calculate() {
  const basis = JSON.parse(field.basis.value);
  if (sized !== field.basis.value) { // another basis begins with a size that it knows
    sized = field.basis.value;
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
    show(error.message);
    return null;
  });
  if (answer === null) return;
  const state = JSON.stringify(answer);
  if (state === asked) return;
  found = answer;
  show(found.why_unknown ? `Unknown at this size: ${found.why_unknown}.` : "");
  form.querySelector(".budget-name").textContent = `Budget, million ${found.unit}`;
  at("price-file").replaceChildren(...(found.is_example
    ? ["These are example prices, nobody's offer: ",
      h("a", { href: "static/prices.yaml", download: "prices.yaml" }, "take the file"),
      ", enter yours, and start with --prices FILE."]
    : [`Prices are from ${found.file}.`]));
  table();
  chart();
  asked = state;
}

function show(problem) {
  at("cost-problem").hidden = !problem;
  setText(at("cost-problem"), problem);
  at("cost-result").hidden = Boolean(problem);
  if (problem) asked = "";
}

const price = (one) => tried.get(one.name) ?? one.unit_hour;
const cost = (one) => price(one) * one.unit_hours.value;

function ends(one) {
  const [value, low, high] = ["value", "low", "high"].map((end) => price(one) * one.unit_hours[end]);
  return interval({ value, low, high }, (sum) => money(sum, found.currency));
}

function table() {
  const names = ["Hardware", "Units", "Price of a unit-hour", "Time", "Cost"];
  headRow(at("costs"), [[names[0], "entered"], [names[1], null], [names[2], "entered"],
    [names[3], "projected"], [names[4], "projected"]]);
  at("costs").tBodies[0].replaceChildren(...found.rows.map((one) => {
    const input = h("input", { type: "number", min: "0", max: "1000000000", step: "any",
      value: Number(price(one).toFixed(4)), "aria-label": `Price of a unit-hour: ${one.name}` });
    const total = h("strong");
    const range = h("small");
    const lowest = h("span", { class: "lowest" });
    const fill = () => {
      total.textContent = found.too_wide ? "" : money(cost(one), found.currency);
      range.textContent = ` ${ends(one)} `;
    };
    one.mark = () => {
      const least = Math.min(...found.rows.map(cost));
      lowest.textContent = cost(one) === least ? "lowest" : "";
    };
    input.addEventListener("input", () => {
      if (!input.checkValidity() || input.value === "") return;
      tried.set(one.name, Number(input.value));
      fill();
      for (const other of found.rows) other.mark();
      chart();
    });
    fill();
    const kind = { cloud: "cloud", spot: "spot", own: "own hardware" }[one.kind];
    const speed = ` · ${one.speed}× the measured speed (entered)`;
    const lost = one.lost_share ? ` · ${Math.round(one.lost_share * 100)}% lost (entered)` : "";
    return row(
      h("th", { scope: "row", role: "rowheader" }, one.name,
        h("span", { class: "note" }, `${kind}${speed}${lost} · ${one.note}`)),
      cell(names[1], `${one.units} × ${one.unit_processes} process`
        + `${one.unit_processes > 1 ? "es" : ""}`),
      cell("Price of a unit-hour (entered)", input, ` ${found.currency}`),
      cell("Time (projected)", found.too_wide
        ? interval(one.hours, (hours) => duration(hours * 3600)) : duration(one.hours.value * 3600)),
      cell("Cost (projected)", total, range, lowest),
    );
  }));
  for (const one of found.rows) one.mark();
}

function chart() {
  const { rows, currency } = found;
  draw("cost-charts", {
    id: "costs", title: "Cost", origin: "projected", bars: true, x: currency,
    lines: [{ name: "cost", x: rows.map(cost), y: rows.map((one) => one.name),
      text: rows.map((one) => (found.too_wide ? ends(one) : money(cost(one), currency))),
      rangeOnly: found.too_wide,
      range: rows.map((one) => [one.unit_hours.low, one.unit_hours.high].map((n) => n * price(one))),
    }],
  });
}

form.addEventListener("input", paused(() => calculate().catch((error) => show(error.message))));
form.addEventListener("submit", (event) => event.preventDefault());
