// Gives each task a colour, the same one in every view. The colours themselves are in the style sheet.

const NUM_COLOURS = 10;
const places = new Map();

/** The class that sets `--task`; BASE is the bare backbone, null a row without a name. */
export const BASE = "base";

export function colourClass(name) {
  if (name === null) return "task-unnamed";
  if (name === BASE) return "task-base";
  if (!places.has(name)) places.set(name, places.size);
  return `task-${places.get(name) % NUM_COLOURS}`;
}

/** The colour as a canvas takes it, under the scheme of this moment. */
export function colourOf(name) {
  return variable(`--${colourClass(name)}`);
}

export function variable(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
