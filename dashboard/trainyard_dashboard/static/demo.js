// Tab 5: asks the served model.

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
let asking = false;

export async function refresh() {
  const about = await get("api/demo");
  if (about.kind !== kind && about.kind && !field.text.value) {
    field.text.value = EXAMPLES[about.kind];
  }
  kind = about.kind;
  setText(at("demo-about"), kind ? `A ${kind} server at ${about.url}.`
    : `There is nobody to ask: ${about.problem}.`);
  setText(at("demo-text-name"), NAMES[kind] ?? "Text");
  at("demo-image-label").hidden = kind !== "vision";
  field.image_url.required = kind === "vision";
  at("demo-tokens-label").hidden = kind === "classify";
  form.querySelector("button").disabled = asking || !kind;
  return [];
}

async function ask() {
  asking = true;
  form.querySelector("button").disabled = true;
  at("demo-result").hidden = false;
  at("demo-classes").hidden = true;
  at("demo-answer").textContent = "…";
  at("demo-facts").textContent = "";
  const question = { text: field.text.value, max_tokens: Number(field.max_tokens.value) || 128 };
  if (kind === "vision") question.image_url = field.image_url.value;
  try {
    const answer = await post("api/demo", question);
    at("demo-answer").textContent = kind === "generate" ? question.text + answer.text : answer.text;
    classes(answer.classes);
    const facts = [`${answer.seconds.toFixed(2)} s (measured)`];
    if (answer.tokens !== null) {
      facts.push(`${answer.tokens} tokens, ${(answer.tokens / answer.seconds).toFixed(0)} per second`
        + " (measured)");
    }
    if (answer.digest) facts.push(`model ${answer.digest.slice(0, 19)}`);
    at("demo-facts").textContent = facts.join(" · ");
  } catch (error) {
    at("demo-answer").textContent = "";
    at("demo-facts").textContent = error.message;
  } finally {
    asking = false;
    form.querySelector("button").disabled = false;
  }
}

function classes(found) {
  at("demo-classes").hidden = found.length === 0;
  at("demo-classes").tBodies[0].replaceChildren(...found.map((one) =>
    h("tr", {}, h("th", { scope: "row" }, one.label), h("td", {}, percent(one.probability)))));
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
