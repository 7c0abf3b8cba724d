// What charts compute from points. Pure functions: arrays in, arrays out.

const TRIMMED = 0.02; // share of the points at each end that may be outliers
const MIN_POINTS = 10; // with fewer, none of them is an outlier
const ROOM = 1.5; // how far beyond the others a point still is no outlier, in their range
const EXTREME = 10; // outliers that stretch the axis by this factor are left out unasked

// The exponential moving average, without bias towards the first value; weight is in [0, 1).
// Values beyond `limits`, [low, high], are outliers: they leave it as it is.
export function smooth(values, weight, [low, high] = [-Infinity, Infinity]) {
  let [average, total] = [0, 0];
  return values.map((value) => {
    if (value >= low && value <= high) {
      average = weight * average + (1 - weight) * value;
      total = weight * total + (1 - weight);
    }
    return total ? average / total : value;
  });
}

// y at `at`, between points with increasing x; null outside of them.
export function interpolate(x, y, at) {
  if (!x.length || at < x[0] || at > x.at(-1)) return null;
  const after = firstAtLeast(x, at);
  if (x[after] === at) return y[after];
  const share = (at - x[after - 1]) / (x[after] - x[after - 1]);
  return y[after - 1] + share * (y[after] - y[after - 1]);
}

// The index of the first value that is at least `wanted`; the length if there is none.
export function firstAtLeast(values, wanted) {
  let [low, high] = [0, values.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The index of the value closest to `wanted`; values must not decrease.
export function nearest(values, wanted) {
  const after = Math.min(firstAtLeast(values, wanted), values.length - 1);
  if (after === 0) return 0;
  return wanted - values[after - 1] < values[after] - wanted ? after - 1 : after;
}

// The smallest and the largest finite value; null if there is none.
export function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : null;
}

// The range of y to show: {low, high, outside}, the number of points outside of it.
// `outliers` is "show", "ignore", or "auto": ignored if they are extreme.
export function shownRange(values, outliers) {
  const all = extent(values);
  if (!all) return null;
  const [low, high] = all;
  const whole = { low, high, outside: 0 };
  if (outliers === "show" || values.length < MIN_POINTS) return whole;
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  const trimmed = Math.max(1, Math.ceil(sorted.length * TRIMMED));
  const [from, to] = [sorted[trimmed], sorted.at(-1 - trimmed)];
  const width = to - from || Math.abs(to) * 0.1 || 1;
  const near = sorted.filter((value) => value >= from - ROOM * width && value <= to + ROOM * width);
  const [least, most] = [near[0], near.at(-1)];
  const stretched = (high - low) / (most - least || width);
  if (near.length === sorted.length || (outliers === "auto" && stretched < EXTREME)) return whole;
  return { low: least, high: most, outside: sorted.length - near.length };
}

// A range with room around it, on a linear or a logarithmic axis.
export function padded([low, high], share, isLog) {
  if (isLog) {
    const [from, to] = padded([Math.log10(low), Math.log10(high)], share, false);
    return [10 ** from, 10 ** to];
  }
  const room = low === high ? Math.abs(low) * 0.1 || 1 : (high - low) * share;
  return [low - room, high + room];
}
