// Line styles: 32 pairs of a colour and a dash. A run keeps its own in every chart and table.

const COLOURS = 8;
export const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];
const STYLES = COLOURS * DASHES.length;
const KEY = "trainyard-line-styles";
const MAX_REMEMBERED = 500; // runs; those chosen longest ago are forgotten

const chosen = new Map(remembered()); // index of the style, by run

// {colour, dash}: the first eight styles are solid, so that few runs differ by colour alone.
export const style = (index) => ({
  colour: index % COLOURS,
  dash: DASHES[Math.floor(index / COLOURS) % DASHES.length],
});

export const styleOf = (id) => chosen.get(id) ?? 0;

// Gives every selected run a style of its own: the one that it had, unless another has it now and
// there is a free one. Only with more runs than styles do some share one.
export function assign(ids) {
  const taken = new Set();
  let changed = false;
  for (const [place, id] of ids.entries()) {
    let index = chosen.get(id);
    if (index === undefined || taken.has(index)) {
      const free = [...Array(STYLES).keys()].find((one) => !taken.has(one)
        && !ids.slice(place + 1).some((other) => chosen.get(other) === one));
      const wanted = free ?? index ?? place % STYLES;
      if (wanted !== index) {
        index = wanted;
        chosen.delete(id); // to the end: the newest
        chosen.set(id, index);
        changed = true;
      }
    }
    taken.add(index);
  }
  if (changed) remember();
}

function remembered() {
  try {
    const entries = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return entries.filter(([id, index]) => typeof id === "string" && Number.isInteger(index)
      && index >= 0 && index < STYLES);
  } catch {
    return []; // the browser forbids it, or another page has written something else
  }
}

function remember() {
  for (const id of chosen.keys()) {
    if (chosen.size <= MAX_REMEMBERED) break;
    chosen.delete(id);
  }
  try {
    localStorage.setItem(KEY, JSON.stringify([...chosen]));
  } catch {
    // then styles last until the page is closed
  }
}
