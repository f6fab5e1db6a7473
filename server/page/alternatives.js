// The small window beside a token: the likeliest tokens in its place.

import { byId, make, percent } from "./dom.js";

const GAP = 6; // px between the token and the window
const HIDE_AFTER = 120; // ms, in which the pointer may reach the window

const window_ = byId("alternatives");
let anchor = null;
let hiding = 0;

export function showAlternatives(span, { token, top }) {
  clearTimeout(hiding);
  const isListed = top.some((each) => each.id === token.id);
  const rows = (isListed ? top : [token, ...top]).map((each) => row(each, each.id === token.id));
  window_.replaceChildren(...rows);
  window_.hidden = false;
  anchor?.removeAttribute("aria-describedby");
  anchor = span;
  place(span.getClientRects()[0] ?? span.getBoundingClientRect());
}

export function hideAlternatives() {
  clearTimeout(hiding);
  hiding = setTimeout(() => {
    window_.hidden = true;
  }, HIDE_AFTER);
}

function row(token, isChosen) {
  const bar = make("i", { class: "share" });
  bar.style.width = `${100 * Math.exp(token.logprob)}%`;
  return make(
    "div",
    { class: isChosen ? "alternative chosen" : "alternative" },
    make("code", {}, visible(token)),
    make("span", { class: "track" }, bar),
    make("span", { class: "share-text" }, percent(token.logprob)),
  );
}

/** A token's text with its white space to be seen. */
function visible(token) {
  if (token.special) return "end of text";
  return token.text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "…";
}

/** Under the token, or over it where there is no room; never beyond the window's sides. */
function place(box) {
  const { offsetWidth: width, offsetHeight: height } = window_;
  const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 8));
  const isBelow = box.bottom + GAP + height < innerHeight;
  window_.style.left = `${left + scrollX}px`;
  window_.style.top = `${(isBelow ? box.bottom + GAP : box.top - GAP - height) + scrollY}px`;
}

window_.addEventListener("mouseenter", () => clearTimeout(hiding));
window_.addEventListener("mouseleave", hideAlternatives);
addEventListener("keydown", (event) => {
  if (event.key === "Escape") window_.hidden = true;
});
