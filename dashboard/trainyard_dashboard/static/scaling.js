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
  const rate = (value) => `${number(value)} ${unit}/s`;
  const ranged = (name, figure, show, origin) =>
    tile(name, ...shown(chosen, figure, show), origin);
  const efficiency = chosen.too_wide ? "" : `; efficiency ${percent(chosen.efficiency)}`;
  at("scaling-tiles").replaceChildren(
    ranged("Time", chosen.hours, seconds, "projected"),
    chosen.cost ? ranged("Cost", chosen.cost, price, "projected")
      : tile("Cost", "enter a price", "", "projected"),
    ranged("Throughput", chosen.throughput, rate, chosen.origin),
    tile("Speedup", shown(chosen, chosen.speedup, times)[0], `against ${base}${efficiency}`,
      chosen.origin),
  );
}

// A figure and its range; the range alone where its middle says nothing.
function shown({ too_wide: wide }, figure, show) {
  const range = interval(figure, show);
  return wide && range ? [range, ""] : [show(figure.value), range];
}

function sizes({ sizes: rows, unit }) {
  const { currency } = study();
  const names = ["Processes", "Throughput", "Speedup", "Efficiency", "Time (projected)",
    "Cost (projected)"];
  headRow(at("sizes"), names.map((one) => [one, null]));
  const rate = (value) => `${number(value)} ${unit}/s`;
  at("sizes").tBodies[0].replaceChildren(...rows.map((one) => row(
    h("th", { scope: "row", role: "rowheader" }, String(one.processes), " ", badge(one.origin)),
    cell(names[1], one.too_wide ? shown(one, one.throughput, number)[0] : rate(one.throughput.value),
      one.too_wide ? ` ${unit}/s` : range(one.throughput)),
    cell(names[2], shown(one, one.speedup, times)[0]),
    cell(names[3], one.too_wide ? "–" : percent(one.efficiency)),
    cell(names[4], shown(one, one.hours, (hours) => duration(hours * 3600))[0]),
    cell(names[5], one.cost ? shown(one, one.cost, (value) => money(value, currency))[0] : "–"),
  )));
}

function range(value) {
  const text = interval(value, number);
  return text ? h("small", {}, ` ${text}`) : null;
}

function law({ law: found, why_no_law: why }) {
  const { machine } = study();
  const where = machine ? ` Measured on ${machine}.` : "";
  if (!found) return `No law: ${why}.${where}`;
  const share = (value) => `${percent(value.value)}${interval(value, percent)
    ? ` (${interval(value, percent)})` : ""}`;
  const small = (value) => number(value, 2);
  const own = found.kind === "linear" ? "" : `contention σ ${share(found.sigma)}`;
  const pairs = found.kind === "usl" ? `, coherency κ ${small(found.kappa.value)}` : "";
  const figures = found.undecided ? "" : own + pairs;
  const misses = found.residual < 1e-9 ? "it runs through the measured sizes"
    : `it misses the measured sizes by ${percent(found.residual)}`;
  const fits = found.undecided ? "" : `; ${misses}`;
  const best = found.best_processes
    ? ` More than ${Math.round(found.best_processes)} processes would make it slower.` : "";
  const choice = found.choice[0].toUpperCase() + found.choice.slice(1);
  return `${[choice, figures].filter(Boolean).join(": ")}${fits}.${best}`
    + " Projections weigh every law by its probability; intervals hold with a probability of 90%."
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
    const middle = projected.map((p) => (p.too_wide ? null : p.speedup.value));
    lines.push({ name: "projected", x: x(projected), y: middle, dash: "dash", slot: 1,
      band: { low: y(projected, "low"), high: y(projected, "high"), name: "90% likely" } });
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
