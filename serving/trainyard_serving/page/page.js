"use strict";
// What the pages to try an app by hand share: the line that says how it goes, the API key, sending.

const KEY = "trainyard-api-key";
const at = (id) => document.getElementById(id);

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

// Says what is served, and asks again until it is ready.
async function look(describe) {
  try {
    const answer = await fetch("ready", { headers: headers() });
    const body = await answer.json();
    at("served").textContent = answer.ok ? describe(body) : body.reason || body.detail;
    if (answer.ok) return;
  } catch (error) {
    at("served").textContent = "The server does not answer.";
  }
  setTimeout(look, 2000, describe);
}

// The form's button sends, and so does Ctrl+Enter in `field`.
function onSend(field, send) {
  at("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
  });
}

at("key").value = sessionStorage.getItem(KEY) ?? "";
at("key").addEventListener("change", () => sessionStorage.setItem(KEY, at("key").value.trim()));
