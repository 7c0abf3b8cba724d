// Tab 2, Scaling: time, cost and speedup at any number of processes, projected from a study.

import { draw } from "./chart.js";
import { at, badge, cell, debounced, h, headRow, options, row } from "./dom.js";
import { count, duration, interval, money, number, percent, times } from "./format.js";
import { get } from "./http.js";
import { style } from "./styles.js";

const form = at("scaling-form");
const field = form.elements;
let studies = [];
let shownFor = "";
let wanted = ""; // what was asked for last: answers to other questions are outdated

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
    [String(i), `${one.label === study().name ? "only one" : one.label}`
      + ` (measured: ${one.sizes.join(", ")} processes)`]));
  if (price !== null) field.price.value = price;
  form.querySelector(".currency").textContent = currency;
  showUnit();
}

function showUnit() {
  const unit = study().configurations[Number(field.configuration.value)]?.unit ?? "tokens";
  form.querySelector(".budget-name").textContent = `Budget, million ${unit}`;
}

async function calculate() {
  if (!form.checkValidity()) return;
  showUnit();
  const parameters = [
    ["study", field.study.value], ["configuration", field.configuration.value],
    ["processes", field.processes.value], ["budget", field.budget.value * 1e6],
    ...(field.price.value === "" ? [] : [["price", field.price.value]]),
  ];
  const state = JSON.stringify([parameters, study().progress]);
  wanted = state;
  if (state === shownFor) return;
  const projection = await get("api/projection", parameters).catch((error) => {
    if (state === wanted) throw error;
  });
  if (state !== wanted) return;
  showTiles(projection);
  showSizes(projection);
  showWarnings(projection.warnings);
  at("law").textContent = lawText(projection);
  drawChart(projection);
  shownFor = state; // at the end, so that failures are retried
}

function showWarnings(warnings) {
  at("scaling-warnings").replaceChildren(...warnings.map((text) => h("li", {}, text)));
}

function tile(name, value, range, origin) {
  return h("div", { class: "tile" }, h("p", { class: "what" }, name, " ", badge(origin)),
    h("p", { class: "value" }, value), h("p", { class: "range" }, range));
}

function showTiles({ chosen, unit, base_processes: base, why_no_law: why }) {
  const { currency } = study();
  if (!chosen) {
    at("scaling-tiles").replaceChildren(h("p", {}, `Unknown at this size: ${why}.`));
    return;
  }
  const seconds = (hours) => duration(hours * 3600);
  const price = (value) => money(value, currency);
  const rate = (value) => `${number(value)} ${unit}/s`;
  const intervalTile = (name, value, format, origin) =>
    tile(name, ...formatted(chosen, value, format), origin);
  const efficiency = chosen.too_wide ? "" : `; efficiency ${percent(chosen.efficiency)}`;
  at("scaling-tiles").replaceChildren(
    intervalTile("Time", chosen.hours, seconds, "projected"),
    chosen.cost ? intervalTile("Cost", chosen.cost, price, "projected")
      : tile("Cost", "enter a price", "", "projected"),
    intervalTile("Throughput", chosen.throughput, rate, chosen.origin),
    tile("Speedup", formatted(chosen, chosen.speedup, times)[0],
      `relative to ${count(base, "process", "processes")}${efficiency}`, chosen.origin),
  );
}

// A value and its interval; only the interval if it is too wide for its middle to mean anything.
function formatted({ too_wide: wide }, value, format) {
  const range = interval(value, format);
  return wide && range ? [range, ""] : [format(value.value), range];
}

function showSizes({ sizes: rows, unit }) {
  const { currency } = study();
  const names = ["Processes", "Throughput", "Speedup", "Efficiency", "Time (projected)",
    "Cost (projected)"];
  headRow(at("sizes"), names.map((one) => [one, null]));
  const rate = (value) => `${number(value)} ${unit}/s`;
  at("sizes").tBodies[0].replaceChildren(...rows.map((one) => row(
    h("th", { scope: "row", role: "rowheader" }, String(one.processes), " ", badge(one.origin)),
    cell(names[1], one.too_wide ? formatted(one, one.throughput, number)[0] : rate(one.throughput.value),
      one.too_wide ? ` ${unit}/s` : range(one.throughput)),
    cell(names[2], formatted(one, one.speedup, times)[0]),
    cell(names[3], one.too_wide ? "–" : percent(one.efficiency)),
    cell(names[4], formatted(one, one.hours, (hours) => duration(hours * 3600))[0]),
    cell(names[5], one.cost ? formatted(one, one.cost, (value) => money(value, currency))[0] : "–"),
  )));
}

function range(value) {
  const text = interval(value, number);
  return text ? h("small", {}, ` ${text}`) : null;
}

function lawText({ law, why_no_law: why }) {
  const { machine } = study();
  const hardware = machine ? ` Measured on ${machine}.` : "";
  if (!law) return `No scaling law: ${why}.${hardware}`;
  const share = (value) => `${percent(value.value)}${interval(value, percent)
    ? ` (${interval(value, percent)})` : ""}`;
  const contention = law.kind === "linear" ? "" : `contention σ ${share(law.sigma)}`;
  const coherency = law.kind === "usl" ? `, coherency κ ${number(law.kappa.value, 2)}` : "";
  const values = law.undecided ? "" : contention + coherency;
  const residual = law.residual < 1e-9 ? "it passes through the measured sizes"
    : `its residual at the measured sizes is ${percent(law.residual)}`;
  const fits = law.undecided ? "" : `; ${residual}`;
  const best = law.best_processes
    ? ` More than ${Math.round(law.best_processes)} processes would make it slower.` : "";
  const choice = law.choice[0].toUpperCase() + law.choice.slice(1);
  return `${[choice, values].filter(Boolean).join(": ")}${fits}.${best}`
    + " Projections weight every law by its probability; intervals are 90% intervals."
    + hardware;
}

function drawChart(projection) {
  const base = projection.base_processes;
  const measured = projection.sizes.filter((point) => point.origin === "measured");
  const projected = projection.chart;
  const ends = (projected.length ? projected : measured).map((point) => point.processes);
  const last = ends.at(-1);
  const x = (points) => points.map((point) => point.processes);
  const y = (points, part = "value") => points.map((point) => point.speedup[part]);
  const lines = [
    { name: "ideal", x: ends, y: ends.map((n) => n / base), quiet: true,
      style: { colour: 0, dash: [2, 4] } },
    { name: "measured", x: x(measured), y: y(measured), markers: true,
      style: style(0),
      range: measured.map((p) => [p.speedup.low, p.speedup.high]) },
  ];
  if (projected.length) {
    const middle = projected.map((p) => (p.too_wide ? null : p.speedup.value));
    lines.push({ name: "projected", x: x(projected), y: middle, style: { ...style(1), dash: [7, 5] },
      band: { low: y(projected, "low"), high: y(projected, "high"), name: "90% interval" } });
  }
  const wide = last / base > 64;
  draw("scaling-charts", {
    id: "speedup", title: "Speedup", x: "Processes",
    y: `Relative to ${count(base, "process", "processes")}`,
    lines, log: wide, fromZero: !wide, height: 340,
  });
}

const recalculate = debounced(() => calculate().catch((error) => showWarnings([error.message])));
form.addEventListener("input", (event) => {
  if (event.target === field.study) chooseStudy();
  recalculate();
});
form.addEventListener("submit", (event) => event.preventDefault());
