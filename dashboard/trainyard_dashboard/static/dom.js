// Builds elements. Text is always set as text, never as HTML: run names and samples are untrusted.

export const at = (id) => document.getElementById(id);

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// A label for the origin of a number that was not measured: projected or entered.
export const badge = (origin) => (origin === "measured" ? null
  : h("span", { class: `badge ${origin}` }, origin));

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Roles are explicit, because the card layout on small screens removes the implicit ones.
export function headRow(table, columns) {
  table.tHead.rows[0].replaceChildren(
    ...columns.map(([name, origin]) =>
      h("th", { scope: "col", role: "columnheader" }, name, origin ? " " : null,
        origin ? badge(origin) : null)),
  );
}

export function cell(name, ...children) {
  return h("td", { role: "cell", "data-label": name }, ...children);
}

export const row = (...cells) => h("tr", { role: "row" }, ...cells);

export function options(select, entries) {
  const before = select.value;
  const same = select.options.length === entries.length
    && entries.every(([value, text], i) =>
      select.options[i].value === value && select.options[i].text === text);
  if (same) return;
  select.replaceChildren(...entries.map(([value, text]) => h("option", { value }, text)));
  if (entries.some(([value]) => value === before)) select.value = before;
}

// Returns a function that calls `action` in the next animation frame, however often it is called.
export function onceAFrame(action) {
  let isRequested = false;
  return () => {
    if (isRequested) return;
    isRequested = true;
    requestAnimationFrame(() => {
      isRequested = false;
      action();
    });
  };
}

// Returns a function that calls `action` once it has not been called for a while.
export function debounced(action, milliseconds = 200) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
}
