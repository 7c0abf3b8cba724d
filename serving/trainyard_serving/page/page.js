"use strict";
// Shared by the apps' pages: the status line, the API key, sending a form.

const KEY = "trainyard-api-key";
const at = (id) => document.getElementById(id);

// A proxy may publish the server under a path prefix: routes lie beside the page, whose own name
// (none, or `try`) is the end of its path.
const NAME = document.documentElement.dataset.name ?? "";
const ROOT = location.pathname.replace(new RegExp(`/?${NAME}$`), "/");
const route = (path) => ROOT + path;

function say(text, bad = false) {
  at("state").textContent = text;
  at("state").classList.toggle("bad", bad);
}

function headers() {
  const key = at("key").value.trim();
  return key ? { authorization: `Bearer ${key}` } : {};
}

function askForKey() {
  at("key").closest("details").open = true;
}

// Shows which model is served; asks again until the server is ready.
async function showModel(describe) {
  try {
    const answer = await fetch(route("ready"), { headers: headers() });
    const body = await answer.json();
    at("served").textContent = answer.ok ? describe(body)
      : body.reason ?? body.error?.message ?? body.detail;
    if (answer.ok) return;
  } catch (error) {
    at("served").textContent = "The server does not answer.";
  }
  setTimeout(showModel, 2000, describe);
}

// Sends on the form's button and on Ctrl+Enter in `field`.
function onSend(field, send) {
  at("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
  });
}

at("key").value = sessionStorage.getItem(KEY) ?? "";
at("key").addEventListener("change", () => sessionStorage.setItem(KEY, at("key").value.trim()));
