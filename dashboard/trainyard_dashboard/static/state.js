// What the page shows, in the URL's fragment (#VIEW?name=value&...): links can be shared, and the
// browser's back and forward buttons work.

const FIRST_VIEW = "performance";
const listeners = new Set();
const last = new Map(); // the parameters that a view had last

// The view and its parameters, as the address bar has them.
export function current() {
  const [view, query = ""] = location.hash.slice(1).split(/\?(.*)/s);
  return { view: view || FIRST_VIEW, parameters: new URLSearchParams(query) };
}

// The parameters that this view has, or had when it was left.
export const lastOf = (view) => last.get(view) ?? new URLSearchParams();

function remember() {
  const { view, parameters } = current();
  last.set(view, parameters);
}

// The fragment of a view. Slashes and colons need no escape there, and are easier to read.
export function fragment(view, parameters = new URLSearchParams()) {
  const query = new URLSearchParams(parameters).toString()
    .replaceAll("%2F", "/").replaceAll("%3A", ":");
  return query ? `#${view}?${query}` : `#${view}`;
}

// Calls `listener` now and after every navigation: a link, a tab, back or forward.
export function onNavigation(listener) {
  listeners.add(listener);
  listener(current());
}

// Changes parameters; what is empty, or null, is removed. With `push` back undoes it.
export function change(changes, push = false) {
  const { view, parameters } = current();
  for (const [name, value] of Object.entries(changes)) {
    parameters.delete(name);
    if (Array.isArray(value)) {
      // No value at all differs from a parameter that is not there.
      for (const one of value.length ? value : [""]) parameters.append(name, one);
    } else if (value !== "" && value !== null && value !== undefined) {
      parameters.set(name, value);
    }
  }
  store(fragment(view, parameters), push);
}

// Shows another view; its parameters are those of the present one unless given.
export function go(view, parameters = current().parameters) {
  store(fragment(view, parameters), true);
  navigated();
}

function store(hash, push) {
  if (hash === location.hash) return;
  if (push) history.pushState(null, "", hash);
  else history.replaceState(null, "", hash);
  remember();
}

function navigated() {
  remember();
  for (const listener of listeners) listener(current());
}

// Also sent when a link to a fragment is followed.
addEventListener("popstate", navigated);
remember();
