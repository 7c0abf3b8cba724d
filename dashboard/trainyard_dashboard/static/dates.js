// Formats times, in the reader's time zone and language.

import { duration, UNKNOWN } from "./format.js";
import { h } from "./dom.js";

const SHORT = new Intl.DateTimeFormat(undefined, {
  month: "short", day: "numeric", hour: "2-digit", minute: "2-digit",
});
const WITH_YEAR = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const FULL = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

// "Mar 3, 14:05", with the year if it is another one.
export function moment(text) {
  const time = parse(text);
  if (!time) return UNKNOWN;
  const sameYear = time.getFullYear() === new Date().getFullYear();
  return (sameYear ? SHORT : WITH_YEAR).format(time);
}

export function full(text) {
  const time = parse(text);
  return time ? FULL.format(time) : "";
}

// As an element that gives the whole date on hover.
export const timeOf = (text) => (parse(text)
  ? h("time", { datetime: text, title: full(text) }, moment(text)) : UNKNOWN);

// Between two times; without `end` until now.
export function between(start, end) {
  const [from, to] = [parse(start), end ? parse(end) : new Date()];
  return from && to ? duration(Math.max(0, (to - from) / 1000)) : UNKNOWN;
}

export const milliseconds = (text) => parse(text)?.getTime() ?? null;

function parse(text) {
  const time = text ? new Date(text) : null;
  return time && !Number.isNaN(time.getTime()) ? time : null;
}
