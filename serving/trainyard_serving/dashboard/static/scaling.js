// Tab 2: what N processes would bring, from what a study measured.

import { draw } from "./chart.js";
import { at, badge, cell, h, headRow, options, paused, row } from "./dom.js";
import { duration, interval, money, number, percent, times } from "./format.js";
import { get } from "./http.js";

const form = at("scaling-form");
const field = form.elements;
let studies = [];
let asked = "";

export async function refresh() {
  const answer = await get("api/studies");
  studies = answer.studies.filter((study) => study.configurations.length);
  form.hidden = studies.length === 0;
  at("no-studies").hidden = studies.length > 0;
  at("scaling-result").hidden = studies.length === 0;
  if (!studies.length) return answer.problems;
  const before = field.study.value;
  options(field.study, studies.map((study) => [study.id, [study.name, study.phase].join(", ")]));
  if (field.study.value !== before) chooseStudy();
  try {
    await calculate();
  } catch (error) {
    return [...answer.problems, error.message];
  }
  return answer.problems;
}

const study = () => studies.find((one) => one.id === field.study.value);

function chooseStudy() {
  const { configurations, price, currency } = study();
  options(field.configuration, configurations.map((one, i) =>
    [String(i), `${one.label === study().name ? "the only one" : one.label}`
      + ` (measured: ${one.sizes.join(", ")} processes)`]));
  if (price !== null) field.price.value = price;
  form.querySelector(".currency").textContent = currency;
  name();
}

function name() {
  const unit = study().configurations[Number(field.configuration.value)]?.unit ?? "tokens";
  form.querySelector(".budget-name").textContent = `Budget, million ${unit}`;
}

async function calculate() {
  if (!form.checkValidity()) return;
  name();
  const parameters = [
    ["study", field.study.value], ["configuration", field.configuration.value],
    ["processes", field.processes.value], ["budget", field.budget.value * 1e6],
    ...(field.price.value === "" ? [] : [["price", field.price.value]]),
  ];
  const state = JSON.stringify([parameters, study().progress]);
  if (state === asked) return;
  const found = await get("api/projection", parameters);
  tiles(found);
  sizes(found);
  at("scaling-warnings").replaceChildren(...found.warnings.map((text) => h("li", {}, text)));
  at("law").textContent = law(found);
  chart(found);
  asked = state; // at the end: what failed is tried again
}

function tile(name, value, range, origin) {
  return h("div", { class: "tile" }, h("p", { class: "what" }, name, " ", badge(origin)),
    h("p", { class: "value" }, value), h("p", { class: "range" }, range));
}

function tiles({ chosen, unit, base_processes: base, why_no_law: why }) {
  const { currency } = study();
  if (!chosen) {
    at("scaling-tiles").replaceChildren(h("p", {}, `Unknown at this size: ${why}.`));
    return;
  }
  const seconds = (hours) => duration(hours * 3600);
  const price = (value) => money(value, currency);
  at("scaling-tiles").replaceChildren(
    tile("Time", seconds(chosen.hours.value), interval(chosen.hours, seconds), "projected"),
    tile("Cost", chosen.cost ? price(chosen.cost.value) : "enter a price",
      chosen.cost ? interval(chosen.cost, price) : "", "projected"),
    tile("Throughput", `${number(chosen.throughput.value)} ${unit}/s`,
      interval(chosen.throughput, number), chosen.origin),
    tile("Speedup", times(chosen.speedup.value),
      `against ${base}; efficiency ${percent(chosen.efficiency)}`, chosen.origin),
  );
}

function sizes({ sizes: rows, unit }) {
  const { currency } = study();
  const names = ["Processes", "Throughput", "Speedup", "Efficiency", "Time (projected)",
    "Cost (projected)"];
  headRow(at("sizes"), names.map((one) => [one, null]));
  at("sizes").tBodies[0].replaceChildren(...rows.map((one) => row(
    h("th", { scope: "row", role: "rowheader" }, String(one.processes), " ", badge(one.origin)),
    cell(names[1], `${number(one.throughput.value)} ${unit}/s`, range(one.throughput, number)),
    cell(names[2], times(one.speedup.value)),
    cell(names[3], percent(one.efficiency)),
    cell(names[4], duration(one.hours.value * 3600)),
    cell(names[5], one.cost ? money(one.cost.value, currency) : "–"),
  )));
}

function range(value, show) {
  const text = interval(value, show);
  return text ? h("small", {}, ` ${text}`) : null;
}

function law({ law: found, why_no_law: why }) {
  const { machine } = study();
  const where = machine ? ` Measured on ${machine}.` : "";
  if (!found) return `No law: ${why}.${where}`;
  const kind = found.kind === "usl" ? "Universal scalability law" : "Amdahl's law";
  const share = (value) => `${percent(value.value)}${interval(value, percent)
    ? ` (${interval(value, percent)})` : ""}`;
  const small = (value) => number(value, 2);
  const pairs = found.kind === "usl" ? `, coherency κ ${small(found.kappa.value)}` : "";
  const misses = found.residual < 1e-9 ? "it runs through the measured sizes"
    : `it misses the measured sizes by ${percent(found.residual)}`;
  const best = found.best_processes
    ? ` More than ${Math.round(found.best_processes)} processes would make it slower.` : "";
  return `${kind}: contention σ ${share(found.sigma)}${pairs}; ${misses}.${best}`
    + " Intervals: 90 of 100 resamples of the measurements."
    + where;
}

function chart(found) {
  const base = found.base_processes;
  const measured = found.sizes.filter((point) => point.origin === "measured");
  const projected = found.chart;
  const ends = (projected.length ? projected : measured).map((point) => point.processes);
  const last = ends.at(-1);
  const x = (points) => points.map((point) => point.processes);
  const y = (points, part = "value") => points.map((point) => point.speedup[part]);
  const lines = [
    { name: "ideal", x: ends, y: ends.map((n) => n / base), dash: "dot", quiet: true },
    { name: "measured", x: x(measured), y: y(measured), mode: "markers", slot: 0,
      range: measured.map((p) => [p.speedup.low, p.speedup.high]) },
  ];
  if (projected.length) {
    lines.push({ name: "projected", x: x(projected), y: y(projected), dash: "dash", slot: 1,
      band: { low: y(projected, "low"), high: y(projected, "high"), name: "90% of resamples" } });
  }
  const wide = last / base > 64;
  draw("scaling-charts", {
    id: "speedup", title: "Speedup", x: "processes", y: `times ${base} process${base > 1 ? "es" : ""}`,
    lines, log: wide, fromZero: !wide, height: 340,
  });
}

const late = paused(() => calculate().catch((error) => {
  at("scaling-warnings").replaceChildren(h("li", {}, error.message));
}));
form.addEventListener("input", (event) => {
  if (event.target === field.study) chooseStudy();
  late();
});
form.addEventListener("submit", (event) => event.preventDefault());
