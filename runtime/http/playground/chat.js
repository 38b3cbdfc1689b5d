// The conversation: settings, turns, stop, retry, and two cache modes side by side.

import { el, json, mayAsk } from "./api.js";
import { Answer, MODES, comparison } from "./answer.js";
import * as memory from "./memory.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["max_tokens", "block_length", "steps", "threshold", "temperature", "seed"];
const LIST = `Prices:
 red apple 42\n blue pear 17\n red plum 30\n green lamp 63\n white cup 18\n black chair 71\n brown boat 25\n pink pen 14
 blue hat 44\n white bowl 36\n black candle 29\n green shirt 58\n brown table 82\n golden bell 51\n teal scarf 23`;
const SHOP = ["What do the red apple and the blue pear cost together?", "Which things are red?",
  "Which is cheaper, the black chair or the green lamp?"];
const GENERAL = ["Explain in two sentences why the sky is blue.", "Write a haiku about a cache.",
  "List three uses of a paper clip."];
const SETTINGS = ["system", "mode", "other", ...NUMBERS];
let info, defaults, abort = null;
const turns = [];

export async function start(loaded) {
  info = loaded;
  const server = await json("server_info");
  defaults = Object.fromEntries(Object.entries(server.default_sampling_params).map(([name, { value }]) => [name, value]));
  const options = () => Object.keys(MODES).map((name) => el("option", { value: name }, name));
  $("mode").replaceChildren(...options());
  $("other").replaceChildren(el("option", { value: "" }, "nothing"), ...options());
  $("mode").onchange = $("other").onchange = describe;
  for (const name of NUMBERS) $(name).placeholder = value(name) ?? "";
  const shop = /(^|\/)shop$/.test(info.model_path);
  $("examples").replaceChildren(...(shop ? SHOP : GENERAL).map((text) =>
    el("button", { type: "button", onclick: () => send(text) }, text)));
  const kept = memory.recall(info.model_path);
  const first = { mode: server.cache_mode, ...(shop && { system: LIST, max_tokens: 32, steps: 16 }) };
  for (const [id, setting] of Object.entries(kept?.settings ?? first)) $(id).value = setting;
  for (const { answers, ...turn } of kept?.turns ?? []) add(turn, answers);
  $("settings").addEventListener("change", keep);
  describe();
  if (innerWidth <= 860) $("settings").open = false;
}

/** Let this tab find the conversation again after a reload. */
function keep() {
  memory.keep({
    model: info.model_path,
    settings: Object.fromEntries(SETTINGS.map((id) => [id, $(id).value])),
    turns: turns.map(({ question, system, fields, answers }) =>
      ({ question, system, fields, answers: answers.map((answer) => answer.kept()) })),
  });
}

const value = (name) => defaults[name === "max_tokens" ? "max_new_tokens" : name];

const busy = (now) => { $("send").disabled = now; $("stop").disabled = !now; };
const modes = () => [$("mode").value, $("other").value].filter(Boolean);
const describe = () => { $("mode-words").textContent = modes().map((mode) => MODES[mode]).join(" "); };

function knobs() {
  const fields = {};
  for (const name of NUMBERS) if ($(name).value !== "") fields[name] = Number($(name).value);
  fields.max_tokens ??= Math.min(value("max_tokens"), 256);
  fields.block_length ??= Math.min(value("block_length"), fields.max_tokens);
  return fields;
}

/** What decides about reuse, of the next answer. */
export function reuseFields() {
  return { max_new_tokens: knobs().max_tokens, cache_mode: $("mode").value };
}

/** The messages of a question behind the complete ones of some turns. */
export function messagesFor(question, system = $("system").value, before = turns) {
  const said = before.filter((turn) => turn.answers[0].meta).flatMap((turn) =>
    [{ role: "user", content: turn.question }, { role: "assistant", content: turn.answers[0].text }]);
  const first = system.trim() ? [{ role: "system", content: system }] : [];
  return [...first, ...said, { role: "user", content: question }];
}

/** Put a turn on the page, with what a reload has kept of its answers. */
function add(turn, kept) {
  turn.answers = kept.map((one) => new Answer(info, one, (answer) => run(turn, [answer])));
  turn.note = el("p", { className: "comparison" }, turn.answers.length > 1 ? comparison(...turn.answers) : "");
  turn.element = el("section", {}, el("div", { className: "user" }, turn.question),
    el("div", { className: "answers" }, ...turn.answers.map((answer) => answer.element)), turn.note);
  $("intro").hidden = true;
  $("turns").append(turn.element);
  turns.push(turn);
}

async function send(question) {
  mayAsk(); // for a key, here or when the page loads what it needs
  if (!info || abort || !question.trim()) return;
  const turn = { question, system: $("system").value, fields: knobs() };
  add(turn, modes().map((mode) => ({ mode })));
  const field = $("question"), focused = document.activeElement === field;
  field.value = "";
  field.replaceWith(field); // the browser's undo history would keep two nodes for each question
  if (focused) field.focus();
  turn.answers[0].element.scrollIntoView({ block: "nearest" });
  await run(turn, turn.answers);
}

/** Run some answers of a turn, one after the other so that neither slows the other down. The talk goes on from there. */
async function run(turn, some) {
  if (abort) return;
  mayAsk();
  const at = turns.indexOf(turn);
  for (const later of turns.splice(at + 1)) later.element.remove();
  abort = new AbortController();
  busy(true);
  try {
    keep();
    const messages = messagesFor(turn.question, turn.system, turns.slice(0, at));
    const said = info.has_chat_template ? { messages } : { prompt: messages.map(({ content }) => content).join("\n") };
    for (const answer of some) await answer.run({ ...turn.fields, ...said }, abort.signal);
    turn.note.textContent = turn.answers.length > 1 ? comparison(...turn.answers) : "";
  } catch (error) {
    if (error.name !== "AbortError") dispatchEvent(new CustomEvent("trouble", { detail: error }));
  } finally {
    abort = null;
    busy(false);
    turn.note.scrollIntoView({ block: "nearest" });
    keep();
  }
}

$("ask").addEventListener("submit", (event) => { event.preventDefault(); send($("question").value); });
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send($("question").value); }
});
$("stop").addEventListener("click", () => abort?.abort());
addEventListener("keydown", (event) => { if (event.key === "Escape") abort?.abort(); });
addEventListener("beforeunload", () => abort?.abort()); // before the browser calls it a failure
$("clear").addEventListener("click", () => {
  abort?.abort();
  turns.length = 0;
  $("turns").replaceChildren($("intro"));
  $("intro").hidden = false;
  keep();
});
