// Starts the page: its views, the key, and what the backbone is.

import { askJson, key } from "./api.js";
import { catalogue } from "./catalogue.js";
import { byId, say } from "./dom.js";
import { live } from "./live.js";
import { playground } from "./playground.js";
import { tasks } from "./tasks.js";

const views = { playground, tasks, live };
const START = "playground";
const RETRY_AFTER = 2000; // ms
let shown = null;

/** Show the view that the address names. Another fragment is a place in the page, as the skip link's. */
function show() {
  const [given, argument] = location.hash.slice(1).split("/");
  const name = Object.hasOwn(views, given) ? given : (shown ?? START);
  if (name === shown) return;
  shown = name;
  for (const [each, view] of Object.entries(views)) {
    byId(`view-${each}`).hidden = each !== name;
    if (each !== name) view.hide?.();
  }
  for (const link of document.querySelectorAll("nav a")) {
    link.ariaCurrent = link.hash === `#${name}` ? "page" : null;
    if (link.ariaCurrent) document.title = `${link.textContent} · Polyprefix`;
  }
  views[name].show?.(argument && decoded(argument));
}

function decoded(argument) {
  try {
    return decodeURIComponent(argument);
  } catch {
    return argument; // a % that means nothing: no task has such a name
  }
}

/** Load what the key opens, once. Where there is none that is good, the login comes up. */
async function enter() {
  const info = await askJson("GET", "info");
  byId("backbone").textContent = `${info.backbone} · ${info.model_dtype} · ${info.model_device_type}`;
  byId("sign-out").hidden = key.get() === null;
  playground.setBackbone(info);
  await catalogue.load();
  live.enter();
}

/** Enter as soon as the server lets us: one that starts or drains may do so a moment later. */
async function start() {
  for (;;) {
    try {
      return await enter();
    } catch (error) {
      if (error.status === 401) return; // the login is up
      byId("backbone").textContent = error.message;
      say(error.message);
      if (error.status !== 0 && error.status !== 429 && error.status < 500) return;
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_AFTER));
  }
}

function askForKey() {
  key.drop();
  byId("sign-out").hidden = true;
  if (!byId("login").open) byId("login").showModal();
}

byId("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const problem = byId("login-error");
  problem.hidden = true;
  const secret = byId("secret").value.trim();
  try {
    if (!/^[!-~]+$/.test(secret)) throw new Error("no key has such characters: paste it as it was given");
    key.set(secret);
    if (catalogue.isLoaded) {
      await askJson("GET", "info"); // is the key a good one?
      return location.reload(); // nothing stays of what another key saw
    }
    await enter();
    byId("secret").value = "";
    byId("login").close();
    say("Signed in");
  } catch (error) {
    problem.textContent = error.message;
    problem.hidden = false;
    byId("secret").focus();
  }
});
byId("login").addEventListener("cancel", (event) => event.preventDefault());
byId("sign-out").addEventListener("click", () => {
  key.drop();
  location.reload();
});
addEventListener("unauthorized", askForKey);
addEventListener("hashchange", show);

show();
start();
