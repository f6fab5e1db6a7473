// One task's answer: its tokens as they come, each coloured by how likely it was, with the likeliest in its place.

import { hideAlternatives, showAlternatives } from "./alternatives.js";
import { events } from "./api.js";
import { BASE, colourClass } from "./colours.js";
import { count, facts, make, percent } from "./dom.js";

const LEVELS = [0.9, 0.5, 0.2, 0.05]; // a token less likely than all of them is the last level
const REASONS = { length: "all new tokens used", eos_token: "end of text", stop_sequence: "stop string" };

export class Answer {
  constructor(taskId) {
    this.taskId = taskId;
    this.tokens = []; // { token, top } in their order
    this.steps = null; // the first and the last forward pass that held the row
    this.askedAt = performance.now();
    this.state = make("span", { class: "state" }, "waiting");
    this.version = make("span", { class: "version" });
    this.text = make("div", { class: "tokens" });
    this.facts = make("p", { class: "facts" });
    const name = taskId === BASE ? "no prefix" : taskId;
    const title = make("h2", {}, make("i", { class: "dot" }), name);
    this.element = make(
      "article",
      { class: `card answer ${colourClass(taskId)}`, "aria-label": `Answer of ${name}` },
      make("header", {}, title, this.version, this.state),
      this.text,
      this.facts,
    );
    this.text.addEventListener("keydown", (event) => this.#move(event));
  }

  /** What a screen reader says at the end. */
  get spoken() {
    return `${this.taskId}: ${this.text.textContent || this.facts.textContent}.`;
  }

  async read(response) {
    const version = response.headers.get("x-task-version");
    this.version.textContent = version ? `v${version}` : "";
    this.state.textContent = "writing";
    for await (const event of events(response)) {
      this.#add(event);
      if (event.details) this.#finish(event.details);
    }
    if (!this.steps) throw new Error("the stream broke off");
  }

  /** Say why there is no more; `isOurs` where the reader wanted it so. */
  fail(message, isOurs) {
    this.state.textContent = isOurs ? "stopped" : "refused";
    this.facts.textContent = message;
    this.facts.classList.toggle("refusal", !isOurs);
  }

  #add({ token, top_tokens: top }) {
    const now = performance.now();
    this.firstAt ??= now;
    this.lastAt = now;
    const index = this.tokens.push({ token, top: top ?? [] }) - 1;
    const isEnd = token.special && token.text === "";
    if (token.text === "" && !isEnd) return; // held back: its text comes with a later one
    const span = make(
      "span",
      {
        class: `token surprise-${levelOf(token.logprob)}${isEnd ? " end" : ""}`,
        role: "option",
        tabIndex: this.text.childElementCount === 0 ? 0 : -1,
        "aria-label": described(this.tokens[index]),
        onmouseenter: () => showAlternatives(span, this.tokens[index]),
        onmouseleave: hideAlternatives,
        onfocus: () => this.#focused(span, index),
        onblur: hideAlternatives,
      },
      isEnd ? "∎" : token.text,
    );
    if (this.text.childElementCount === 0) {
      this.text.setAttribute("role", "listbox");
      this.text.setAttribute("aria-label", `Tokens of ${this.taskId}; arrow keys go through them`);
    }
    this.text.append(span);
  }

  #focused(span, index) {
    this.text.querySelector('[tabindex="0"]').tabIndex = -1;
    span.tabIndex = 0;
    showAlternatives(span, this.tokens[index]);
  }

  #move(event) {
    if (event.key === "Escape") hideAlternatives();
    const spans = [...this.text.children];
    const at = spans.indexOf(event.target);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 }[event.key];
    if (to === undefined || !(to in spans)) return;
    event.preventDefault();
    spans[to].focus();
  }

  #finish(details) {
    this.steps = details.steps;
    this.state.textContent = "done";
    const seconds = (this.lastAt - this.firstAt) / 1000;
    const told = facts(
      count(this.tokens.length, "token"),
      `first after ${Math.round(this.firstAt - this.askedAt)} ms`,
      ...(seconds > 0 ? [`${Math.round((this.tokens.length - 1) / seconds)} tokens/s`] : []),
      REASONS[details.finish_reason],
      `passes ${details.steps[0]}–${details.steps[1]}`,
    );
    this.facts.replaceChildren(...told);
  }
}

function levelOf(logprob) {
  const probability = Math.exp(logprob ?? 0);
  const level = LEVELS.findIndex((least) => probability >= least);
  return level < 0 ? LEVELS.length : level;
}

function described({ token, top }) {
  const others = top.filter((each) => each.id !== token.id).map((each) => `${each.text} ${percent(each.logprob)}`);
  const own = `${token.special ? "end of text" : token.text}, ${percent(token.logprob)}`;
  return others.length ? `${own}; else ${others.join(", ")}` : own;
}
