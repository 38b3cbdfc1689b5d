// The conversation: settings, turns, stop, retry, and two cache modes side by side.

import { el, json, mayAsk } from "./api.js";
import { Answer, MODES, comparison } from "./answer.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["max_tokens", "block_length", "steps", "threshold", "temperature", "seed"];
const LIST = `Prices:
 red apple 42\n blue pear 17\n red plum 30\n green lamp 63\n white cup 18\n black chair 71\n brown boat 25\n pink pen 14
 blue hat 44\n white bowl 36\n black candle 29\n green shirt 58\n brown table 82\n golden bell 51\n teal scarf 23`;
const SHOP = ["What do the red apple and the blue pear cost together?", "Which things are red?",
  "Which is cheaper, the black chair or the green lamp?"];
const GENERAL = ["Explain in two sentences why the sky is blue.", "Write a haiku about a cache.",
  "List three uses of a paper clip."];

let info, defaults, abort = null;
const history = [];

export async function start(loaded) {
  info = loaded;
  const server = await json("server_info");
  defaults = Object.fromEntries(Object.entries(server.default_sampling_params).map(([name, { value }]) => [name, value]));
  for (const [id, none] of [["mode", false], ["other", true]]) {
    $(id).replaceChildren(...(none ? [el("option", { value: "" }, "nothing")] : []),
      ...Object.keys(MODES).map((name) => el("option", { value: name }, name)));
  }
  $("mode").value = server.cache_mode;
  $("mode").onchange = $("other").onchange = describe;
  describe();
  for (const name of NUMBERS) $(name).placeholder = value(name) ?? "";
  const shop = /(^|\/)shop$/.test(info.model_path);
  if (shop && !$("system").value) {
    Object.assign($("system"), { value: LIST });
    Object.assign($("max_tokens"), { value: 32 });
    Object.assign($("steps"), { value: 16 });
  }
  $("examples").replaceChildren(...(shop ? SHOP : GENERAL).map((text) =>
    el("button", { type: "button", onclick: () => send(text) }, text)));
  if (innerWidth <= 860) $("settings").open = false;
}

const value = (name) => defaults[name === "max_tokens" ? "max_new_tokens" : name];

function describe() {
  $("mode-words").textContent = [$("mode").value, $("other").value].filter(Boolean).map((m) => MODES[m]).join(" ");
}

function body(messages) {
  const fields = {};
  for (const name of NUMBERS) if ($(name).value !== "") fields[name] = Number($(name).value);
  fields.max_tokens ??= Math.min(value("max_tokens"), 256);
  fields.block_length ??= Math.min(value("block_length"), fields.max_tokens);
  if (info.has_chat_template) return { ...fields, messages };
  return { ...fields, prompt: messages.map((message) => message.content).join("\n") };
}

/** What decides about reuse, of the next answer. */
export function reuseFields() {
  return { max_new_tokens: body([]).max_tokens, cache_mode: $("mode").value };
}

export function messagesFor(question) {
  const system = $("system").value.trim() ? [{ role: "system", content: $("system").value }] : [];
  return [...system, ...history, { role: "user", content: question }];
}

async function send(question) {
  mayAsk(); // for a key, here or when the page loads what it needs
  if (!info || abort || !question.trim()) return;
  $("intro").hidden = true;
  $("question").value = "";
  const messages = messagesFor(question);
  const modes = [$("mode").value, ...($("other").value ? [$("other").value] : [])];
  const note = el("p", { className: "comparison" });
  const asked = body(messages);
  const turn = { question, place: history.length };
  const answers = modes.map((mode) => new Answer(info, mode, (one) => run(turn, [one], asked, answers, note)));
  $("turns").append(el("section", {}, el("div", { className: "user" }, question),
    el("div", { className: "answers" }, ...answers.map((answer) => answer.element)), note));
  answers[0].element.scrollIntoView({ block: "nearest" });
  await run(turn, answers, asked, answers, note);
}

/** Run some answers of a turn, one after the other so that neither slows the other down. */
async function run(turn, some, asked, answers, note) {
  if (abort) return;
  mayAsk();
  abort = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  try {
    for (const answer of some) await answer.run(asked, abort.signal);
    history.splice(turn.place, history.length, { role: "user", content: turn.question },
      { role: "assistant", content: answers[0].text });
    note.textContent = answers.length > 1 ? comparison(...answers) : "";
  } catch (error) {
    if (error.name !== "AbortError") dispatchEvent(new CustomEvent("trouble", { detail: error }));
  } finally {
    abort = null;
    $("send").disabled = false;
    $("stop").disabled = true;
    note.scrollIntoView({ block: "nearest" });
  }
}

$("ask").addEventListener("submit", (event) => { event.preventDefault(); send($("question").value); });
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send($("question").value); }
});
$("stop").addEventListener("click", () => abort?.abort());
addEventListener("keydown", (event) => { if (event.key === "Escape") abort?.abort(); });
$("clear").addEventListener("click", () => {
  abort?.abort();
  history.length = 0;
  $("turns").replaceChildren($("intro"));
  $("intro").hidden = false;
});
