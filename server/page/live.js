// The live view: what the engine's last steps held, told by the server as it happens.

import { ask, events, key } from "./api.js";
import { drawRate, drawSteps, MAX_STEPS } from "./charts.js";
import { BASE, colourClass } from "./colours.js";
import { byId, bytes, count, make } from "./dom.js";

const RATE_SECONDS = 60;
const TILE_SECONDS = 2; // over which the present rate is counted
const TOLD_EVERY = 1000; // ms between two descriptions for screen readers
const RETRY_AFTER = 1000; // ms

let hasEntered = false; // a key that is good, and the tasks in their order, by which they get their colours
let isShown = false;
let watching = null; // an AbortController while the view is shown
let isPaused = false;
let latest = null; // the last event
let steps = []; // { step, at, rows: [{ slot, name, numPromptTokens }] }
let perSecond = new Map(); // tokens by second of the server's clock
let toldAt = 0;

export const live = {
  show() {
    isShown = true;
    if (hasEntered && !watching) watch();
    requestAnimationFrame(draw);
  },
  hide() {
    isShown = false;
    watching?.abort();
    watching = null;
  },
  /** The key is a good one. */
  enter() {
    hasEntered = true;
    if (isShown) live.show();
  },
};

async function watch() {
  const mine = (watching = new AbortController());
  while (watching === mine) {
    try {
      const response = await ask("GET", "live", { signal: mine.signal });
      for await (const event of events(response)) take(event);
    } catch (error) {
      if (mine.signal.aborted || error.status === 401) return;
      byId("live-state").textContent = `${error.message}; trying again`;
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_AFTER));
  }
}

function forget() {
  steps = [];
  perSecond = new Map();
}

function take(event) {
  if (isPaused) return;
  if (event.server !== latest?.server) forget(); // another clock, and steps of its own
  latest = event;
  const known = steps.at(-1)?.step ?? -1;
  const isOperator = event.cache !== null && key.get() !== null;
  const names = event.owners.map(({ tenant, task_id }) => (isOperator ? `${tenant}/${task_id}` : task_id));
  for (const { step, at, tokens, rows } of event.steps) {
    if (step <= known) continue; // a new connection begins with all that are remembered
    steps.push({ step, at, rows: rows.map(([slot, owner, prompt]) => ({ slot, name: names[owner] ?? null, prompt })) });
    const second = Math.floor(at / 1000);
    perSecond.set(second, (perSecond.get(second) ?? 0) + tokens);
  }
  steps = steps.slice(-MAX_STEPS);
  for (const second of perSecond.keys()) if (second < event.now / 1000 - RATE_SECONDS - 1) perSecond.delete(second);
  draw();
}

function draw() {
  if (!latest || byId("view-live").hidden) return;
  drawTiles();
  drawSteps(byId("steps"), steps, latest.num_slots);
  drawRate(byId("rate"), rates());
  drawQueue();
  drawLegend();
  const last = steps.at(-1);
  const isIdle = !last || latest.now - last.at > 1000;
  byId("live-state").textContent = isPaused ? "paused" : isIdle ? "idle" : `pass ${last.step.toLocaleString("en")}`;
  if (Date.now() - toldAt >= TOLD_EVERY) describe(last);
}

/** Tokens of each whole second of the last minute, oldest first. */
function rates() {
  const now = Math.floor(latest.now / 1000);
  return Array.from({ length: RATE_SECONDS }, (_, i) => perSecond.get(now - RATE_SECONDS + i) ?? 0);
}

function drawTiles() {
  const recent = rates().slice(-TILE_SECONDS);
  const rate = recent.reduce((sum, tokens) => sum + tokens, 0) / TILE_SECONDS;
  const last = steps.at(-1);
  const numRows = last && latest.now - last.at < 1000 ? last.rows.length : 0;
  const numTasks = numRows ? new Set(last.rows.map((row) => row.name)).size : 0;
  const numWaiting = latest.waiting.reduce((sum, { requests }) => sum + requests, 0);
  const tiles = [
    ["Tokens per second", Math.round(rate).toLocaleString("en"), ""],
    ["Rows in the batch", `${numRows}`, `of ${count(latest.num_slots, "slot")}, ${count(numTasks, "task")}`],
    ["Waiting", `${numWaiting}`, count(latest.waiting.length, "tenant")],
    ["First token", ...times(latest.first_token)],
    ["Between two tokens", ...times(latest.gap)],
  ];
  if (latest.cache) {
    const { hits, misses, prefixes, bytes: size } = latest.cache;
    const share = hits + misses ? `${Math.floor((100 * hits) / (hits + misses))} %` : "–";
    tiles.push(["Prefix cache hits", share, `${count(prefixes, "prefix", "prefixes")}, ${bytes(size)}`]);
  }
  byId("tiles").replaceChildren(
    ...tiles.map(([name, value, more]) =>
      make("div", {}, make("dt", {}, name), make("dd", {}, make("b", {}, value), " ", make("small", {}, more))),
    ),
  );
}

function times(percentiles) {
  if (!percentiles) return ["–", ""];
  const [median, p95, p99] = percentiles.map((ms) => (ms < 10 ? ms.toFixed(1) : Math.round(ms).toLocaleString("en")));
  return [`${median} ms`, `p95 ${p95}, p99 ${p99}`];
}

function drawQueue() {
  const most = Math.max(1, ...latest.waiting.map(({ requests }) => requests));
  const rows = latest.waiting.map(({ tenant, requests }) => {
    const bar = make("i", { class: "share" });
    bar.style.width = `${(100 * requests) / most}%`;
    return make(
      "li",
      {},
      make("span", {}, tenant ?? "others"),
      make("span", { class: "track" }, bar),
      make("b", {}, String(requests)),
    );
  });
  byId("queue").replaceChildren(...(rows.length ? rows : [make("li", { class: "hint" }, "Nobody waits.")]));
}

function counted(rows) {
  const found = new Map();
  for (const { name } of rows) found.set(name, (found.get(name) ?? 0) + 1);
  return [...found];
}

const shownName = (name) => (name === null ? "other rows" : name === BASE ? "no prefix" : name);

function drawLegend() {
  const names = [...new Set(steps.flatMap((step) => step.rows.map((row) => row.name)))];
  names.sort((a, b) => (a === null) - (b === null) || String(a).localeCompare(String(b)));
  const shown = JSON.stringify(names);
  if (byId("step-legend").dataset.names === shown) return;
  byId("step-legend").dataset.names = shown;
  byId("step-legend").replaceChildren(
    ...names.map((name) => make("li", { class: colourClass(name) }, make("i", { class: "dot" }), shownName(name))),
  );
}

/** The picture in words, now and then: a description that changes all the time cannot be heard. */
function describe(last) {
  toldAt = Date.now();
  const rows = last ? counted(last.rows).map(([name, number]) => `${number} of ${shownName(name)}`) : [];
  const text = last
    ? `Pass ${last.step} held ${count(last.rows.length, "row")}: ${rows.join(", ")}`
    : "No forward pass has run yet";
  byId("steps").setAttribute("aria-label", text);
  byId("rate").setAttribute("aria-label", `Tokens per second, the last minute: at most ${Math.max(...rates())}`);
}

byId("pause").addEventListener("click", () => {
  isPaused = !isPaused;
  byId("pause").textContent = isPaused ? "Go on" : "Pause";
  draw();
});
addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
