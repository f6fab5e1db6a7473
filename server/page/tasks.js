// The task list: versions, rollback, settings, deletion. Uploads are in uploads.js.

import { ask, taskPath } from "./api.js";
import { catalogue, servedVersion } from "./catalogue.js";
import { colourClass } from "./colours.js";
import { byId, bytes, count, facts, make, say } from "./dom.js";
import "./uploads.js";

const NUM_SHOWN = 100;
const SERVED = "served";
const ROLES = ["system", "user", "assistant"];
const open = new Set(); // tasks whose details are shown
const unsaved = new Map(); // by task, what was typed into its settings: a card is made anew when its numbers change
let shown = []; // what was drawn last

export const tasks = {
  show() {
    catalogue.reload();
  },
};

function draw() {
  const wanted = byId("list-filter").value.trim().toLowerCase();
  const found = catalogue.tasks.filter((task) => task.task_id.toLowerCase().includes(wanted));
  byId("num-tasks").textContent = numbers(found.length);
  const next = found.slice(0, NUM_SHOWN).map((task) => JSON.stringify(task));
  if (next.join() === shown.join() && byId("task-list").childElementCount) return; // what is being edited stays
  shown = next;
  byId("task-list").replaceChildren(...found.slice(0, NUM_SHOWN).map(card));
}

function numbers(numFound) {
  if (catalogue.problem) return catalogue.problem;
  const total = `${count(catalogue.tasks.length, "task")}${catalogue.isWhole ? "" : ", and more"}`;
  if (catalogue.tasks.length === 0) return "No task yet. A task is a tuned prefix: upload one above.";
  if (numFound > NUM_SHOWN) return `${total}; the first ${NUM_SHOWN} of ${numFound} found`;
  return numFound < catalogue.tasks.length ? `${numFound} of ${total}` : total;
}

function card(task) {
  const served = servedVersion(task);
  const problem = make("p", { class: "refusal", role: "alert", hidden: true });
  const act = (action) => carryOut(action, problem);
  const told = facts(
    `version ${task.version} of ${task.versions.length}`,
    count(served.num_virtual_tokens, "virtual token"),
    bytes(served.num_bytes),
    count(task.usage.requests, "request"),
    count(task.usage.generated_tokens, "token"),
  );
  return make(
    "article",
    { class: `card task ${colourClass(task.task_id)}`, "aria-labelledby": `task-${task.task_id}` },
    make(
      "header",
      {},
      make("h2", { id: `task-${task.task_id}` }, make("i", { class: "dot" }), task.task_id),
      task.public ? make("span", { class: "badge" }, "public") : null,
      ...flags(served),
      make(
        "a",
        {
          class: "button quiet",
          href: `#playground/${encodeURIComponent(task.task_id)}`,
          "aria-label": `Try ${task.task_id}`,
        },
        "Try",
      ),
      task.own ? deletion(task, act) : null,
    ),
    task.config.description ? make("p", {}, task.config.description) : null,
    make("p", { class: "facts" }, ...told),
    problem,
    details(task, "versions", "Versions", () => versions(task, act)),
    task.own ? details(task, "settings", "Settings", () => settings(task, act)) : null,
  );
}

function deletion(task, act) {
  return make(
    "button",
    { type: "button", class: "quiet", "aria-label": `Delete ${task.task_id}`, onclick: () => remove(task, act) },
    "Delete",
  );
}

function flags(version) {
  return [
    version.stale && make("span", { class: "badge warning", title: "Made for another backbone" }, "stale"),
    version.quarantined && make("span", { class: "badge warning", title: version.quarantined }, "quarantined"),
  ].filter(Boolean);
}

function details(task, name, title, content) {
  const place = `${task.task_id} ${name}`;
  const element = make("details", { open: open.has(place) }, make("summary", {}, title), content());
  element.addEventListener("toggle", () => (element.open ? open.add(place) : open.delete(place)));
  return element;
}

/** What a version answers: all requests, a share of them, or none. */
function partOf({ version }, { version: served, traffic }) {
  if (!traffic) return version === served ? SERVED : null;
  if (!traffic[version]) return null;
  const total = Object.values(traffic).reduce((sum, weight) => sum + weight);
  return `${Math.round((100 * traffic[version]) / total)} % of requests`;
}

function versions(task, act) {
  const rows = task.versions.toReversed().map((version) => {
    const part = partOf(version, task);
    const serve = () => act(() => ask("PATCH", taskPath(task.task_id), { json: { version: version.version } }));
    const button = make(
      "button",
      {
        type: "button",
        class: "quiet",
        onclick: serve,
        "aria-label": `Serve version ${version.version} of ${task.task_id}`,
      },
      "Serve",
    );
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, String(version.version)),
      make("td", {}, new Date(version.created_at).toLocaleString()),
      make("td", {}, version.kind),
      make("td", {}, String(version.num_virtual_tokens)),
      make("td", {}, bytes(version.num_bytes)),
      make("td", {}, make("code", { title: version.sha256 }, version.sha256.slice(0, 10))),
      make("td", {}, ...flags(version), part && make("span", { class: "badge" }, part), task.own && part !== SERVED ? button : null),
    );
  });
  const heads = ["Version", "Uploaded", "Kind", "Tokens", "Size", "SHA-256", "Served"];
  const head = make("tr", {}, ...heads.map((name) => make("th", { scope: "col" }, name)));
  return make(
    "div",
    { class: "scrolled", tabIndex: 0, role: "region", "aria-label": `Versions of ${task.task_id}` },
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)),
  );
}

function settings(task, act) {
  const { description, prompt_template: template, chat_template: chat, parameters } = task.config;
  const form = make(
    "form",
    { class: "settings" },
    field("Description", "description", description, 1),
    field("Prompt template, with one {inputs}", "prompt_template", template ?? "", 2),
    field("Default parameters, as JSON", "parameters", JSON.stringify(parameters), 2),
    make(
      "fieldset",
      {},
      make("legend", {}, "Chat template, each with one {content}"),
      ...ROLES.map((role) => field(role, role, chat?.[role] ?? "", 1)),
    ),
    make("div", { class: "actions" }, make("button", { type: "submit" }, "Save")),
  );
  const shown = valuesOf(form); // as they are held here, which may differ from what the server has in line ends
  for (const [name, value] of unsaved.get(task.task_id) ?? []) form.elements[name].value = value;
  form.addEventListener("input", () => {
    const typed = Object.entries(valuesOf(form)).filter(([name, value]) => value !== shown[name]);
    unsaved.set(task.task_id, typed);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    act(async () => {
      const sent = valuesOf(form);
      await ask("PATCH", taskPath(task.task_id), { json: { config: changed(sent, shown) } });
      const typedSince = (unsaved.get(task.task_id) ?? []).filter(([name, value]) => value !== sent[name]);
      unsaved.set(task.task_id, typedSince);
    });
  });
  return form;
}

function field(label, name, value, rows) {
  return make("label", {}, label, make("textarea", { name, rows, value, spellcheck: false }));
}

function valuesOf(form) {
  return Object.fromEntries([...form.querySelectorAll("textarea")].map(({ name, value }) => [name, value]));
}

/** The part of a config that was changed: all else stays as it is. Throws where the JSON is none. */
function changed(values, shown) {
  const config = {};
  const differs = (name) => values[name] !== shown[name];
  if (differs("description")) config.description = values.description;
  if (differs("prompt_template")) config.prompt_template = values.prompt_template || null;
  if (differs("parameters")) {
    try {
      config.parameters = JSON.parse(values.parameters || "null");
    } catch (error) {
      throw new Error(`the default parameters are not JSON: ${error.message}`);
    }
  }
  if (ROLES.some(differs)) {
    const chat = Object.fromEntries(ROLES.map((role) => [role, values[role]]));
    config.chat_template = Object.values(chat).some(Boolean) ? chat : null;
  }
  return config;
}

async function carryOut(action, problem) {
  problem.hidden = true;
  try {
    await action();
    say("Done");
    catalogue.reload();
  } catch (error) {
    problem.textContent = error.message;
    problem.hidden = false;
  }
}

function remove(task, act) {
  const dialog = byId("confirm");
  byId("confirm-question").textContent = `Delete ${task.task_id}?`;
  byId("confirm-consequence").textContent =
    `Its ${count(task.versions.length, "version")} will be gone. Requests that are running end as they began.`;
  dialog.returnValue = "";
  dialog.onclose = () => {
    if (dialog.returnValue !== "yes") return;
    unsaved.delete(task.task_id);
    act(() => ask("DELETE", taskPath(task.task_id)));
  };
  dialog.showModal();
}

catalogue.addEventListener("change", draw);
addEventListener("unauthorized", () => unsaved.clear()); // another key may have a task of the same name
byId("list-filter").addEventListener("input", () => {
  draw();
  catalogue.seek(byId("list-filter").value.trim());
});
