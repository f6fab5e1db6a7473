// Draws the live view's two pictures. Knows canvases and numbers; knows nothing of where they come from.

import { colourOf, variable } from "./colours.js";

export const MAX_STEPS = 400;
const COLUMN = 6; // px, the gap included
const GAP = 1; // px
const MAX_HEIGHT = 320; // px of all slots together
const MIN_LINE = 5;
const MAX_LINE = 16;

/** The newest steps that have room, one column each, from the right; one line for each slot. */
export function drawSteps(canvas, steps, numSlots) {
  const line = Math.max(MIN_LINE, Math.min(MAX_LINE, Math.floor(MAX_HEIGHT / numSlots)));
  const [context, width] = prepared(canvas, numSlots * line);
  const numColumns = Math.floor(width / COLUMN);
  const [empty, shade] = [variable("--cell"), variable("--shade")];
  const colours = new Map();
  context.fillStyle = empty;
  for (let slot = 0; slot < numSlots; slot += 1) context.fillRect(0, slot * line, width, line - GAP);
  steps.slice(-numColumns).forEach(({ rows }, i, shown) => {
    const x = width - (shown.length - i) * COLUMN;
    for (const { slot, name, prompt } of rows) {
      if (!colours.has(name)) colours.set(name, colourOf(name));
      context.fillStyle = colours.get(name);
      context.fillRect(x, slot * line, COLUMN - GAP, line - GAP);
      if (prompt > 0) {
        context.fillStyle = shade;
        context.fillRect(x, slot * line, COLUMN - GAP, line - GAP);
      }
    }
  });
}

/** An area, from the oldest at the left to the newest at the right. */
export function drawRate(canvas, numbers) {
  const height = 140;
  const [context, width] = prepared(canvas, height);
  const most = niceAbove(Math.max(10, ...numbers));
  const [top, bottom] = [14, height - 2];
  const place = (number, i) => [(width * i) / (numbers.length - 1), bottom - ((bottom - top) * number) / most];
  context.strokeStyle = variable("--line");
  context.fillStyle = variable("--muted");
  context.font = `12px ${variable("--sans")}`;
  for (const share of [0, 0.5, 1]) {
    const y = Math.round(bottom - (bottom - top) * share) + 0.5;
    context.beginPath();
    context.moveTo(0, y);
    context.lineTo(width, y);
    context.stroke();
    if (share) context.fillText((most * share).toLocaleString("en"), 0, y - 3);
  }
  const path = new Path2D();
  numbers.forEach((number, i) => path[i ? "lineTo" : "moveTo"](...place(number, i)));
  context.strokeStyle = context.fillStyle = variable("--accent");
  context.lineWidth = 1.5;
  context.lineJoin = "round";
  context.stroke(path);
  path.lineTo(width, bottom);
  path.lineTo(0, bottom);
  context.globalAlpha = 0.14;
  context.fill(path);
}

/** The canvas cleared, as wide as its place and `height` high, in CSS pixels. */
function prepared(canvas, height) {
  const ratio = devicePixelRatio;
  const width = canvas.clientWidth;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return [context, width];
}

/** The next of 1, 2, 5, 10, 20, 50 … */
function niceAbove(number) {
  const power = 10 ** Math.floor(Math.log10(number));
  return [1, 2, 5, 10].find((factor) => factor * power >= number) * power;
}
