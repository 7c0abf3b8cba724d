// Draws line and bar charts as SVG. Colours come from the style sheet, which handles dark mode.

import { extent } from "./curve_math.js";
import { number } from "./format.js";

const BAR_ROW = 44;

function s(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const ink = (line) => (line.quiet ? "quiet" : `ink-${line.style.colour}`);
const dashes = (line) => line.style.dash.join(" ") || undefined;
const round = (value) => value.toFixed(1);

// SVG path data; a null y leaves a gap.
function path(x, y) {
  let [text, pen] = ["", "M"];
  for (let i = 0; i < x.length; i += 1) {
    if (y[i] !== null) text += `${pen}${round(x[i])} ${round(y[i])}`;
    pen = y[i] === null ? "M" : "L";
  }
  return text;
}

// A short piece of a line, for legends and tables.
export function sample(line) {
  const mark = line.markers ? s("circle", { cx: 14, cy: 6, r: 4, class: `point ${ink(line)}` })
    : s("path", { d: "M0 6H28", class: `line ${ink(line)}`, "stroke-dasharray": dashes(line) });
  return s("svg", { width: 28, height: 12, "aria-hidden": "true" }, mark);
}

function ranges(spec) {
  const { lines } = spec;
  const x = extent(lines.flatMap((line) => line.x)) ?? [0, 1];
  const y = extent(lines.flatMap((line) =>
    [...line.y, ...(line.band ? [...line.band.low, ...line.band.high] : []),
      ...(line.range ? line.range.flat() : [])])) ?? [0, 1];
  if (spec.fromZero) y[0] = Math.min(0, y[0]);
  for (const range of [x, y]) {
    if (range[0] === range[1]) {
      const room = Math.abs(range[0]) / 10 || 1;
      range[0] -= room;
      range[1] += room;
    }
  }
  if (spec.log) return { x: [x[0] / 1.1, x[1] * 1.1], y: [y[0] / 1.3, y[1] * 1.3] };
  const room = (y[1] - y[0]) * 0.05;
  if (lines.some((line) => line.markers)) { // do not clip the ones at the edges
    x[0] -= (x[1] - x[0]) * 0.02;
  }
  return { x, y: [spec.fromZero && y[0] === 0 ? 0 : y[0] - room, y[1] + room] };
}

export function drawLines(spec, width, height) {
  const range = ranges(spec);
  const marks = {
    x: spec.log ? logTicks(range.x) : ticks(range.x, Math.max(4, width / 110)),
    y: spec.log ? logTicks(range.y) : ticks(range.y, height / 60),
  };
  const longest = Math.max(...marks.y.map((value) => number(value).length));
  const area = { left: 30 + longest * 7, right: width - 20, top: 8, bottom: height - 40 };
  const scale = spec.log ? logarithmic : linear;
  const x = scale(range.x, [area.left, area.right]);
  const y = scale(range.y, [area.bottom, area.top]);
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });

  for (const value of marks.y) {
    svg.append(s("path", { class: "grid", d: `M${area.left} ${round(y(value))}H${area.right}` }),
      s("text", { x: area.left - 8, y: y(value) + 4, class: "end" }, number(value)));
  }
  for (const value of marks.x) {
    svg.append(s("path", { class: "grid", d: `M${round(x(value))} ${area.top}V${area.bottom}` }),
      s("text", { x: x(value), y: area.bottom + 16, class: "middle" }, number(value)));
  }
  const middle = (area.top + area.bottom) / 2;
  svg.append(
    s("path", { class: "axis", d: `M${area.left} ${area.top}V${area.bottom}H${area.right}` }),
    s("text", { x: (area.left + area.right) / 2, y: height - 6, class: "middle" }, spec.x),
    s("text", { x: 12, y: middle, class: "middle", transform: `rotate(-90 12 ${middle})` }, spec.y),
  );

  for (const line of spec.lines) {
    const [px, py] = [line.x.map(x), line.y.map((value) => (value === null ? null : y(value)))];
    if (line.band) {
      const edges = [...line.x.keys()];
      const back = edges.toReversed();
      const d = path([...px, ...back.map((i) => px[i])],
        [...line.band.high.map(y), ...back.map((i) => y(line.band.low[i]))]);
      svg.append(s("path", { class: `band ${ink(line)}`, d: `${d}Z` }));
    }
    if (line.markers) svg.append(...markers(line, px, py, y));
    else svg.append(s("path", { class: `line ${ink(line)}`, d: path(px, py),
      "stroke-dasharray": dashes(line) }));
  }
  return svg;
}

// A circle for each point, with the range that was measured.
function markers(line, px, py, y) {
  return px.flatMap((cx, i) => {
    const [low, high] = line.range[i];
    const [top, bottom] = [round(y(high)), round(y(low))];
    return [
      ...(low === high ? [] : [s("path", { class: `line ${ink(line)}`,
        d: `M${cx - 5} ${top}h10M${cx - 5} ${bottom}h10M${cx} ${top}V${bottom}` })]),
      s("circle", { class: `point ${ink(line)}`, cx: round(cx), cy: round(py[i]), r: 5 }),
    ];
  });
}

// Horizontal bars, each below its name: names are long, and phones are narrow.
export function drawBars({ lines: [line] }, width) {
  const height = line.x.length * BAR_ROW + 8;
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const most = Math.max(...line.x, ...line.range.map(([, high]) => high)) || 1;
  const x = linear([0, most], [1, width - 110]);
  for (const [i, value] of line.x.entries()) {
    const top = i * BAR_ROW;
    const [low, high] = line.range[i];
    // A range may span the whole width, so its text goes next to the name.
    const name = line.rangeOnly ? `${line.y[i]}: ${line.text[i]}` : line.y[i];
    const [start, end] = line.rangeOnly ? [x(low), x(high)] : [0, x(value)];
    svg.append(
      s("text", { x: 0, y: top + 14, class: "name" }, name),
      s("rect", { class: "bar ink-0", x: round(start), y: top + 20, height: 14,
        width: round(end - start), opacity: line.rangeOnly ? 0.4 : undefined }),
    );
    if (line.rangeOnly) continue;
    const after = x(Math.max(value, high)) + 10;
    svg.append(s("text", { x: after, y: top + 32, class: "name" }, line.text[i]));
    if (low !== high) {
      svg.append(s("path", { class: "whisker", d: `M${round(x(low))} ${top + 27}H${round(x(high))}`
        + `M${round(x(low))} ${top + 23}v8M${round(x(high))} ${top + 23}v8` }));
    }
  }
  return svg;
}

function linear([low, high], [from, to]) {
  const factor = (to - from) / (high - low);
  return (value) => from + (value - low) * factor;
}

function logarithmic([low, high], pixels) {
  const scale = linear([Math.log(low), Math.log(high)], pixels);
  return (value) => scale(Math.log(value));
}

// About `count` round numbers: multiples of 1, 2 or 5 times a power of ten.
function ticks([low, high], count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const marks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) {
    marks.push(Number((i * step).toPrecision(12)));
  }
  return marks;
}

function logTicks([low, high]) {
  const marks = [];
  for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10) {
    marks.push(...[1, 2, 5].map((factor) => factor * power));
  }
  return marks.filter((value) => value >= low && value <= high);
}
