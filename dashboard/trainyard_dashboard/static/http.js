// Asks the server, with the API key where one is needed.

const KEY = "trainyard-api-key";
const SECONDS = 30;

export class KeyNeeded extends Error {}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value.trim()),
};

export async function get(path, parameters = []) {
  const query = new URLSearchParams(parameters).toString();
  return ask(query ? `${path}?${query}` : path);
}

export async function post(path, body) {
  const headers = { "content-type": "application/json" };
  return ask(path, { method: "POST", headers, body: JSON.stringify(body) }, 3 * SECONDS);
}

async function ask(path, options = {}, seconds = SECONDS) {
  const headers = { ...options.headers };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  let answer;
  try {
    const signal = AbortSignal.timeout(seconds * 1000);
    answer = await fetch(path, { ...options, headers, signal });
  } catch (error) {
    throw new Error("The dashboard's server does not answer: is it still running?");
  }
  if (answer.status === 401) throw new KeyNeeded("This dashboard asks for its API key.");
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.detail || `The server answers ${answer.status}.`);
  return body;
}
