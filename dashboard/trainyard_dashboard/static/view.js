// How all curves are shown: the axes, smoothing, outliers, and the part of the x axis in view.

const DEFAULTS = Object.freeze({
  x: "step", logX: false, logY: false, smoothing: 0, outliers: "auto", range: null,
});
export const AXES = {
  step: "Step", seconds: "Time since the start", tokens: "Tokens", samples: "Samples",
};
export const OUTLIERS = { auto: "Hide extreme", ignore: "Hide", show: "Show" };
const ZOOM = 0.5; // of the range that stays in view
const MOVE = 0.25;

export const view = { ...DEFAULTS };
const listeners = new Set();

export const onView = (listener) => listeners.add(listener);

export function change(values) {
  if ("x" in values && values.x !== view.x) view.range = null; // it is in another unit
  Object.assign(view, values);
  for (const listener of listeners) listener();
}

// Changes the part of the x axis in view: "in", "out", "earlier", "later" or "reset". `all` is the
// range of what could be in view; null if nothing could.
export function zoom(action, all) {
  if (action === "reset" || !all) return change({ range: null });
  const forth = view.logX ? (value) => Math.log10(Math.max(value, 1e-9)) : (value) => value;
  const back = view.logX ? (value) => 10 ** value : (value) => value;
  const [low, high] = (view.range ?? all).map(forth);
  const [least, most] = all.map(forth);
  const factor = { in: ZOOM, out: 1 / ZOOM }[action] ?? 1;
  const shift = { earlier: -MOVE, later: MOVE }[action] ?? 0;
  const half = ((high - low) / 2) * factor;
  if (half * 2 >= most - least) return change({ range: null });
  const middle = Math.min(most - half, Math.max(least + half,
    (low + high) / 2 + shift * (high - low)));
  return change({ range: [back(middle - half), back(middle + half)] });
}

// For the page's address: only what differs from the defaults.
export function viewParameters() {
  return Object.entries(view).filter(([name, value]) =>
    JSON.stringify(value) !== JSON.stringify(DEFAULTS[name]))
    .map(([name, value]) => [name, Array.isArray(value) ? value.join("-to-") : String(value)]);
}

// From the page's address, which anybody may have written: what makes no sense is left out.
export function restoreView(parameters) {
  const values = Object.fromEntries(parameters);
  const restored = { ...DEFAULTS };
  if (Object.hasOwn(AXES, values.x)) restored.x = values.x;
  if (Object.hasOwn(OUTLIERS, values.outliers)) restored.outliers = values.outliers;
  for (const name of ["logX", "logY"]) restored[name] = values[name] === "true";
  const smoothing = Number(values.smoothing);
  if (smoothing >= 0 && smoothing < 1) restored.smoothing = smoothing;
  const range = (values.range ?? "").split("-to-").map(Number);
  if (range.length === 2 && range.every(Number.isFinite) && range[0] < range[1]) {
    restored.range = range;
  }
  change(restored);
}
