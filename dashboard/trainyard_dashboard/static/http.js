// Sends requests to the server, with the API key if one was entered.

const KEY = "trainyard-api-key";
const TIMEOUT = 30; // seconds

export class KeyRequired extends Error {}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value.trim()),
};

export async function get(path, parameters = []) {
  const query = new URLSearchParams(parameters).toString();
  return request(query ? `${path}?${query}` : path);
}

export async function post(path, body) {
  const headers = { "content-type": "application/json" };
  return request(path, { method: "POST", headers, body: JSON.stringify(body) }, 3 * TIMEOUT);
}

async function request(path, options = {}, seconds = TIMEOUT) {
  const headers = { ...options.headers };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  let response;
  try {
    const signal = AbortSignal.timeout(seconds * 1000);
    response = await fetch(path, { ...options, headers, signal });
  } catch (error) {
    throw new Error("The dashboard's server does not respond. Is it still running?");
  }
  if (response.status === 401) throw new KeyRequired("This dashboard requires an API key.");
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.detail || `The server responded with status ${response.status}.`);
  return body;
}
