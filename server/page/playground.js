// The playground: one input through several tasks side by side.

import { Answer } from "./answer.js";
import { ask } from "./api.js";
import { catalogue } from "./catalogue.js";
import { BASE, colourClass } from "./colours.js";
import { byId, count, make, say } from "./dom.js";
import { showSnippet } from "./snippets.js";

const MAX_CHOSEN = 6; // a browser opens six connections to one server
const NUM_SHOWN = 60;
const FILTER_FROM = 12; // tasks; fewer are seen at a glance
const NUM_ALTERNATIVES = 5;

const form = byId("request");
const chosen = new Set();
let backboneName = BASE;
let running = null; // an AbortController while answers come

export const playground = {
  /** `taskId`: choose this one alone. */
  show(taskId) {
    if (!taskId) return;
    chosen.clear();
    chosen.add(taskId);
    catalogue.seek(taskId);
    history.replaceState(null, "", "#playground");
    update();
    byId("inputs").focus();
  },
  setBackbone(info) {
    backboneName = info.backbone;
  },
};

/** What the form asks for, without what is left empty. */
function parameters() {
  const found = {};
  for (const field of form.querySelectorAll("[name]")) {
    if (field.value.trim() === "") continue;
    if (field.name === "stop") found.stop = field.value.split("\n").filter((line) => line !== "");
    else found[field.name] = Number(field.value);
  }
  return found;
}

function requestOf(taskId) {
  return { task_id: taskId === BASE ? null : taskId, inputs: byId("inputs").value, parameters: parameters() };
}

async function run() {
  if (running || chosen.size === 0 || !form.reportValidity()) return;
  running = new AbortController();
  const { signal } = running;
  setRunning(true);
  const answers = [...chosen].map((taskId) => new Answer(taskId));
  byId("answers").replaceChildren(...answers.map((answer) => answer.element));
  byId("legend").hidden = false;
  byId("summary").textContent = "";
  await Promise.all(answers.map((answer) => fill(answer, signal)));
  running = null;
  setRunning(false);
  byId("summary").textContent = summaryOf(answers);
  say(answers.map((answer) => answer.spoken).join(" "));
}

async function fill(answer, signal) {
  const request = requestOf(answer.taskId);
  request.parameters.top_n_tokens = NUM_ALTERNATIVES;
  try {
    await answer.read(await ask("POST", "generate_stream", { json: request, signal }));
  } catch (error) {
    answer.fail(signal.aborted ? "stopped" : error.message, signal.aborted);
  }
}

/** What shows that the rows were batched: how many passes there were, and in how many of them rows met. */
function summaryOf(answers) {
  const done = answers.filter((answer) => answer.steps);
  if (done.length === 0) return "";
  const held = new Map();
  for (const { steps } of done) {
    for (let step = steps[0]; step <= steps[1]; step += 1) held.set(step, (held.get(step) ?? 0) + 1);
  }
  const numTokens = done.reduce((sum, answer) => sum + answer.tokens.length, 0);
  const numShared = [...held.values()].filter((rows) => rows > 1).length;
  const whole = `${count(numTokens, "token")} in ${count(held.size, "forward pass", "forward passes")}`;
  return done.length > 1 ? `${whole}; ${numShared} of them held rows of several of these tasks.` : `${whole}.`;
}

function setRunning(isRunning) {
  byId("run").disabled = isRunning;
  byId("stop").hidden = !isRunning;
}

function update() {
  if (!catalogue.isLoaded) return;
  const filter = byId("task-filter");
  filter.hidden = catalogue.tasks.length < FILTER_FROM;
  const wanted = filter.hidden ? "" : filter.value.trim().toLowerCase();
  const found = catalogue.tasks.filter(
    (task) => chosen.has(task.task_id) || task.task_id.toLowerCase().includes(wanted),
  );
  if (found.length > NUM_SHOWN) found.sort((a, b) => chosen.has(b.task_id) - chosen.has(a.task_id)); // to be seen at all
  const listed = new Set([...found.slice(0, NUM_SHOWN).map((task) => task.task_id), ...chosen]);
  listed.delete(BASE);
  const names = [...listed, BASE];
  byId("choices").replaceChildren(...names.map(choice));
  byId("num-chosen").textContent =
    chosen.size >= MAX_CHOSEN ? `${MAX_CHOSEN} at a time` : found.length > NUM_SHOWN ? `${found.length} found` : "";
  byId("run").disabled = running !== null || chosen.size === 0;
  if (!running && byId("answers").childElementCount === 0) byId("summary").textContent = invitation();
  const first = chosen.values().next().value;
  showSnippet(first === undefined ? null : requestOf(first), backboneName);
}

function invitation() {
  if (catalogue.tasks.length === 0) {
    return "This server has no task yet: upload one under Tasks, or ask the bare backbone.";
  }
  return "Choose some tasks and write an input. Their rows run through the same forward passes, side by side.";
}

function choice(taskId) {
  const box = make("input", {
    type: "checkbox",
    checked: chosen.has(taskId),
    disabled: chosen.size >= MAX_CHOSEN && !chosen.has(taskId),
    onchange: () => {
      if (box.checked) chosen.add(taskId);
      else chosen.delete(taskId);
      update();
      byId(`choice-${taskId}`)?.focus();
    },
    id: `choice-${taskId}`,
  });
  const about = catalogue.find(taskId)?.config.description ?? "No prefix";
  const name = taskId === BASE ? "no prefix" : taskId;
  return make(
    "label",
    { class: `choice ${colourClass(taskId)}`, title: about },
    box,
    make("i", { class: "dot" }),
    name,
  );
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
form.addEventListener("input", update);
byId("task-filter").addEventListener("input", () => catalogue.seek(byId("task-filter").value.trim()));
byId("task-filter").addEventListener("keydown", (event) => {
  if (event.key === "Enter") event.preventDefault(); // it looks for a task, and runs none
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
});
byId("stop").addEventListener("click", () => running?.abort());
catalogue.addEventListener("change", () => {
  if (!catalogue.isLoaded) return;
  const isGone = (taskId) => taskId !== BASE && catalogue.isWhole && !catalogue.find(taskId);
  for (const taskId of chosen) if (isGone(taskId)) chosen.delete(taskId);
  if (chosen.size === 0) {
    const first = catalogue.tasks.slice(0, 3).map((task) => task.task_id);
    for (const taskId of first.length ? first : [BASE]) chosen.add(taskId);
  }
  update();
});
