// Tab 5, Demo: sends prompts to the served model.

import { at, h, setText } from "./dom.js";
import { percent } from "./format.js";
import { get, post } from "./http.js";

const form = at("demo-form");
const field = form.elements;
const NAMES = { generate: "Text to continue", classify: "Text to classify", vision: "Question" };
const EXAMPLES = {
  generate: "def ", vision: "What is in this picture?",
  classify: "Shares rose after the company reported record profits.",
};
let kind = null;
let waiting = false;

export async function refresh() {
  const info = await get("api/demo");
  if (info.kind !== kind && info.kind && !field.text.value) {
    field.text.value = EXAMPLES[info.kind];
  }
  kind = info.kind;
  setText(at("demo-info"), kind ? `Prompts go to the ${kind} server at ${info.url}.`
    : `The demo is not available: ${info.problem}.`);
  setText(at("demo-text-name"), NAMES[kind] ?? "Text");
  at("demo-image-label").hidden = kind !== "vision";
  field.image_url.required = kind === "vision";
  at("demo-tokens-label").hidden = kind === "classify";
  form.querySelector("button").disabled = waiting || !kind;
  return [];
}

async function ask() {
  waiting = true;
  form.querySelector("button").disabled = true;
  at("demo-result").hidden = false;
  at("demo-classes").hidden = true;
  at("demo-answer").textContent = "…";
  at("demo-facts").textContent = "";
  const prompt = { text: field.text.value, max_tokens: Number(field.max_tokens.value) || 128 };
  if (kind === "vision") prompt.image_url = field.image_url.value;
  try {
    const answer = await post("api/demo", prompt);
    at("demo-answer").textContent = kind === "generate" ? prompt.text + answer.text : answer.text;
    showClasses(answer.classes);
    const facts = [`${answer.seconds.toFixed(2)} s (measured)`];
    if (answer.tokens !== null) {
      facts.push(`${answer.tokens} tokens, ${(answer.tokens / answer.seconds).toFixed(0)} tokens/s`
        + " (measured)");
    }
    if (answer.digest) facts.push(`model ${answer.digest.slice(0, 19)}`);
    at("demo-facts").textContent = facts.join(" · ");
  } catch (error) {
    at("demo-answer").textContent = "";
    at("demo-facts").textContent = error.message;
  } finally {
    waiting = false;
    form.querySelector("button").disabled = false;
  }
}

function showClasses(classes) {
  at("demo-classes").hidden = classes.length === 0;
  at("demo-classes").tBodies[0].replaceChildren(...classes.map((one) =>
    h("tr", {}, h("th", { scope: "row" }, one.label), h("td", {}, percent(one.probability)))));
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
