// Calls to the server, with the key where it asks for one, and small helpers for building the page.

const KEY = "shoal.key";
const dialog = document.querySelector("#keys");
let asking = null;
let refused = false;

/** Ask for a key once, whoever needs it; false if the visitor has none. */
function askForKey(why) {
  asking ??= new Promise((resolve) => {
    document.querySelector("#keys-why").textContent = why;
    document.querySelector("#key").value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      const key = document.querySelector("#key").value.trim();
      const given = dialog.returnValue === "ok" && key !== "";
      if (given) sessionStorage.setItem(KEY, key);
      refused = !given;
      asking = null;
      resolve(given);
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

/** Forget that no key was given: the visitor acts again. */
export function mayAsk() { refused = false; }

/** The response of a call; throws an Error with the server's own words. */
export async function call(path, body, signal) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    if (body) headers["content-type"] = "application/json";
    const response = await fetch(path, {
      method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body), cache: "no-store",
    });
    if (response.ok) return response;
    const error = (await response.json().catch(() => ({}))).error ?? {};
    const words = error.message ?? `the server answered ${response.status}`;
    if (response.status === 401 && !refused && (await askForKey(words))) continue;
    throw Object.assign(new Error(words), { status: response.status, code: error.code });
  }
}

export const json = async (path, body, signal) => (await call(path, body, signal)).json();

/** The objects of a stream of server-sent events. */
export async function* events(path, body, signal) {
  const reader = (await call(path, body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection ended before the answer did");
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

/** An element with properties, attributes (with a dash, or `role`) and children; strings become text. */
export function el(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("--")) made.style.setProperty(key, value);
    else if (key.includes("-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

// Control characters, and those that turn the direction of text around, would hide what a model wrote.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]/g;

/** Text with unseen characters written out. */
export const visible = (text) =>
  text.replace(UNSEEN, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);

export const whole = (n) => Math.round(n).toLocaleString("en");
export const percent = (share) => (share > 0 && share < 0.01 ? "<1%" : `${Math.round(100 * share)}%`);
export const bytes = (n) => (n < 1e6 ? `${whole(n / 1e3)} kB` : `${(n / 1e6).toFixed(n < 1e7 ? 1 : 0)} MB`);

export const tile = (value, label) => el("div", { className: "tile" }, el("b", {}, value), el("span", {}, label));
