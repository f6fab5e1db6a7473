import assert from "node:assert/strict";
import { it } from "node:test";

import { secondsToWait } from "../src/errors.js";
import { payloads } from "../src/events.js";

async function read(...chunks: (string | Uint8Array)[]): Promise<string[]> {
  const encoder = new TextEncoder();
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      chunks.forEach((chunk) => controller.enqueue(typeof chunk === "string" ? encoder.encode(chunk) : chunk));
      controller.close();
    },
  });
  const found: string[] = [];
  for await (const payload of payloads(body)) {
    found.push(payload);
  }
  return found;
}

it("keeps characters in the text that end a line elsewhere", async () => {
  const text = "a\u2028b\u2029c\u0085d\u000be\u000cf";
  assert.deepEqual(await read(`data: ${text}\n\n`), [text]);
});

it("keeps characters whole wherever the chunks end", async () => {
  const bytes = new TextEncoder().encode("data: naïve — 海 🌊\r\n\r\ndata: b\r\n\r\n");
  assert.deepEqual(await read(...Array.from(bytes, (byte) => Uint8Array.of(byte))), ["naïve — 海 🌊", "b"]);
});

it("takes every end of a line that the standard knows", async () => {
  assert.deepEqual(await read("data: a\n\ndata: b\r\n\r\ndata: c\r\r"), ["a", "b"]);
  assert.deepEqual(await read("data: c\r\r", "data: d\n\n"), ["c", "d"]);
});

it("passes over comments and other fields, and joins the lines of one event", async () => {
  assert.deepEqual(await read(": keep-alive\n\n\nevent: token\nid: 4\ndata:one\ndata: two\n\n: keep-alive\n\n"), ["one\ntwo"]);
});

it("drops an event that is not whole", async () => {
  assert.deepEqual(await read("data: a\n\ndata: b\n"), ["a"]);
});

it("cancels a body that nobody reads to its end", async () => {
  let cancelled = false;
  const body = new ReadableStream<Uint8Array>({
    pull: (controller) => controller.enqueue(new TextEncoder().encode("data: a\n\n")),
    cancel: () => {
      cancelled = true;
    },
  });
  for await (const payload of payloads(body)) {
    assert.equal(payload, "a");
    break;
  }
  assert.ok(cancelled);
});

it("reads Retry-After as seconds or as a date", () => {
  assert.equal(secondsToWait("20"), 20);
  assert.equal(secondsToWait("Wed, 21 Oct 2015 07:28:00 GMT"), 0);
  assert.equal(secondsToWait("soon"), null);
  assert.equal(secondsToWait("1.5"), null);
  assert.equal(secondsToWait("-5"), null);
  assert.equal(secondsToWait(null), null);
});
