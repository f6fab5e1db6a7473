// Makes and finds elements. Knows nothing of what they show.

/** An element with these properties; `class`, `data-…`, `aria-…` and the like are set as attributes. */
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && key !== "list" && key !== "form") element[key] = value;
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Facts one after the other, none of them broken over two lines. */
export function facts(...texts) {
  return texts.flatMap((text, i) => [i ? " " : "", make("span", {}, i < texts.length - 1 ? `${text} ·` : text)]);
}

/** Have a screen reader say it. */
export function say(text) {
  byId("said").textContent = text;
}

export function count(number, noun, plural = `${noun}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? noun : plural}`;
}

export function bytes(number) {
  const units = ["B", "KB", "MB", "GB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, number)) / 3));
  const scaled = number / 1000 ** power;
  return `${power && scaled < 10 ? scaled.toFixed(1) : Math.round(scaled)} ${units[power]}`;
}

/** A probability, from its logarithm. */
export function percent(logprob) {
  const probability = 100 * Math.exp(logprob);
  return probability < 0.1 ? "under 0.1 %" : `${probability < 10 ? probability.toFixed(1) : Math.round(probability)} %`;
}
