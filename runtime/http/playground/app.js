// Tabs, polling, and what is shown while the server can't be reached.

import { json, visible } from "./api.js";
import * as cache from "./cache.js";
import { start } from "./chat.js";
import * as load from "./load.js";

const POLL_MS = 2000;
const tabs = [...document.querySelectorAll('[role="tab"]')];
const lost = document.querySelector("#lost");
let ready = false, busy = false;

const hash = (tab) => `#view=${tab.getAttribute("aria-controls")}`;

function choose(tab, focus) {
  for (const each of tabs) {
    const chosen = each === tab;
    each.setAttribute("aria-selected", chosen);
    each.tabIndex = chosen ? 0 : -1;
    document.getElementById(each.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (focus) tab.focus();
  history.replaceState(null, "", hash(tab)); // no id of an element, or the browser would scroll to it
  tick();
}

for (const tab of tabs) {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) choose(tabs[(tabs.indexOf(tab) + by + tabs.length) % tabs.length], true);
  });
}

function show(error) {
  const unreachable = error instanceof TypeError;
  lost.textContent = unreachable ? "The server does not answer. This page keeps trying."
    : `The server says: ${visible(error.message)}. This page keeps trying.`;
  lost.hidden = false;
}

/** Load what the page needs first, then keep the visible view up to date. */
async function tick() {
  if (busy || document.hidden) return;
  busy = true;
  try {
    if (!ready) {
      const info = await json("model_info");
      document.querySelector("#model").textContent = visible(info.served_model_name);
      await start(info);
      ready = true;
    } else if (!lost.hidden) {
      await json("model_info");
    }
    lost.hidden = true;
    await load.refresh();
    if (!document.getElementById("cache").hidden) await cache.refresh();
  } catch (error) {
    if (error.name !== "AbortError") show(error);
  } finally {
    busy = false;
  }
}

addEventListener("trouble", ({ detail }) => { if (detail instanceof TypeError) show(detail); });
document.addEventListener("visibilitychange", tick);
setInterval(tick, POLL_MS);
choose(tabs.find((tab) => hash(tab) === location.hash) ?? tabs[0]);
