// Formats numbers. Unknown values are shown as "unknown", never as 0.

export const UNKNOWN = "unknown";
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export function number(value, digits = 3) {
  if (!known(value)) return UNKNOWN;
  const size = Math.abs(value);
  for (const [limit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= limit) return `${trim(value / (limit === 1e4 ? 1e3 : limit), digits)}${letter}`;
  }
  if (size > 0 && size < 1e-3) return Number(value.toPrecision(digits)).toExponential();
  return trim(value, Math.max(digits, String(Math.trunc(size)).length));
}

const trim = (value, digits) => String(Number(value.toPrecision(digits)));

export const loss = (value) => (known(value) ? value.toFixed(3) : UNKNOWN);
export const cores = (value) => (known(value) ? value.toFixed(value < 10 ? 2 : 1) : UNKNOWN);
export const percent = (value) => (known(value) ? `${trim(value * 100, 3)}%` : UNKNOWN);
export const times = (value) => (known(value) ? `${trim(value, 3)}×` : UNKNOWN);

export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  if (seconds < 1) return `${trim(seconds * 1000, 2)} ms`;
  if (seconds < 60) return `${trim(seconds, 2)} s`;
  const minutes = Math.round(seconds / 60);
  if (seconds < 3600) return seconds < 600 && seconds % 60 >= 1 && minutes < 10
    ? `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s` : `${minutes} min`;
  if (seconds < 48 * 3600) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  const days = seconds / 86400;
  return days < 730 ? `${trim(days, 3)} days` : `${trim(days / 365.25, 3)} years`;
}

export function money(value, currency) {
  if (!known(value)) return UNKNOWN;
  const digits = Math.abs(value) >= 100 ? 0 : 2;
  const text = Math.abs(value) >= 1e7 ? number(value)
    : value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return `${text} ${currency}`;
}

// "2.5 h to 4 h"; empty if both ends look the same.
export function interval(range, show) {
  const [low, high] = [range.low, range.high].map((end) => show(end));
  return low === high ? "" : `${low} to ${high}`;
}

export function throughput(run) {
  if (known(run.tokens_per_second)) return `${number(run.tokens_per_second)} tokens/s`;
  if (known(run.samples_per_second)) return `${number(run.samples_per_second)} samples/s`;
  return UNKNOWN;
}

// "412 MiB".
export function bytes(value) {
  if (!known(value)) return UNKNOWN;
  for (const [size, unit] of [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (value >= size) return `${trim(value / size, value < 1000 * size ? 3 : 4)} ${unit}`;
  }
  return `${Math.round(value)} B`;
}

// "1 run", "2 runs".
export const count = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;
