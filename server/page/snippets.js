// The playground's request as somebody would send it: with curl, our Python client, or OpenAI's.

import { key } from "./api.js";
import { catalogue } from "./catalogue.js";
import { byId, make, say } from "./dom.js";

const DIALECTS = { curl, Python: python, OpenAI: openai };
const DEFAULT_NEW_TOKENS = 64;
const DONE_SHOWN = 1500; // ms

let dialect = "curl";
let shown = null;

/** `request` is the generate route's body; null where no task is chosen. */
export function showSnippet(request, backboneName) {
  shown = request && { ...request, backboneName };
  byId("snippet").textContent = shown ? DIALECTS[dialect](shown) : "";
  byId("snippet-task").textContent = shown ? `for ${shown.task_id ?? "no prefix"}` : "";
}

const address = () => new URL(".", document.baseURI).href.replace(/\/$/, "");

function curl({ task_id, inputs, parameters }) {
  const body = { ...(task_id && { task_id }), inputs, ...(Object.keys(parameters).length && { parameters }) };
  const lines = [
    `curl ${address()}/generate`,
    key.get() && '-H "authorization: Bearer $POLYPREFIX_API_KEY"',
    "-H 'content-type: application/json'",
    `-d '${JSON.stringify(body).replaceAll("'", "'\\''")}'`,
  ];
  return lines.filter(Boolean).join(" \\\n  ");
}

function python({ task_id, inputs, parameters }) {
  const task = task_id ? JSON.stringify(task_id) : "None";
  const options = Object.entries(parameters).map(([name, value]) => `${name}=${JSON.stringify(value)}`);
  const secret = key.get() ? ', api_key=os.environ["POLYPREFIX_API_KEY"]' : "";
  return `${secret && "import os\n\n"}from polyprefix import Client

with Client("${address()}"${secret}) as client:
    answer = client.generate(${[task, JSON.stringify(inputs), ...options].join(", ")})
    print(answer.generated_text)`;
}

function openai({ task_id, inputs, parameters, backboneName }) {
  const defaults = task_id ? catalogue.find(task_id)?.config.parameters : {};
  const { max_new_tokens, do_sample, temperature, top_p, top_k, repetition_penalty, seed, stop } = { ...defaults, ...parameters };
  const isChosen = do_sample || [temperature, top_p, top_k].some((value) => value !== undefined);
  const isGreedy = do_sample === false || temperature === 0 || !isChosen; // as the server has it
  const options = {
    model: task_id ?? backboneName,
    prompt: inputs,
    max_tokens: max_new_tokens ?? DEFAULT_NEW_TOKENS,
    temperature: isGreedy ? 0 : (temperature ?? 1),
    top_p,
    seed,
    stop,
  };
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  const missing = [top_k && "top_k", repetition_penalty && "repetition_penalty"].filter(Boolean);
  return `${key.get() ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${address()}/v1", api_key=${key.get() ? 'os.environ["POLYPREFIX_API_KEY"]' : '"none"'})
${missing.length ? `# OpenAI's dialect has no ${missing.join(" and no ")}.\n` : ""}answer = client.completions.create(
${given.map(([name, value]) => `    ${name}=${JSON.stringify(value)},`).join("\n")}
)
print(answer.choices[0].text)`;
}

function choose(name) {
  dialect = name;
  for (const tab of byId("dialects").children) {
    const isChosen = tab.textContent === name;
    tab.setAttribute("aria-selected", isChosen);
    tab.tabIndex = isChosen ? 0 : -1;
    if (isChosen) byId("snippet").setAttribute("aria-labelledby", tab.id);
  }
  byId("snippet").textContent = shown ? DIALECTS[name](shown) : "";
}

byId("dialects").append(
  ...Object.keys(DIALECTS).map((name) =>
    make(
      "button",
      { type: "button", role: "tab", id: `dialect-${name}`, "aria-controls": "snippet", onclick: () => choose(name) },
      name,
    ),
  ),
);
byId("dialects").addEventListener("keydown", (event) => {
  const tabs = [...byId("dialects").children];
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step === undefined) return;
  const next = tabs.at((tabs.indexOf(event.target) + step) % tabs.length);
  next.focus();
  choose(next.textContent);
});
byId("copy-snippet").addEventListener("click", async () => {
  getSelection().selectAllChildren(byId("snippet"));
  await navigator.clipboard?.writeText(byId("snippet").textContent); // none without TLS: then it is selected, at least
  const done = navigator.clipboard ? "Copied" : "Selected";
  byId("copy-snippet").textContent = done;
  say(done);
  setTimeout(() => {
    byId("copy-snippet").textContent = "Copy";
  }, DONE_SHOWN);
});
choose(dialect);
