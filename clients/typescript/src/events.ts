/** Server-sent events: bytes in, payloads out (WHATWG HTML, 9.2). Knows nothing of what the payloads hold. */

/**
 * The payloads of the stream's `data:` fields.
 *
 * A line ends with \n, \r\n or \r, nothing else: U+2028 and U+0085 stay in the text. An event without its empty line
 * at the end of the stream is dropped, as the standard says.
 */
export async function* payloads(body: ReadableStream<Uint8Array>): AsyncGenerator<string, void, undefined> {
  let fields: string[] = [];
  for await (const line of lines(body)) {
    if (line === "" && fields.length > 0) {
      yield fields.join("\n");
      fields = [];
    } else if (line === "data" || line.startsWith("data:")) {
      fields.push(line.slice("data:".length).replace(/^ /, ""));
    }
  }
}

async function* lines(body: ReadableStream<Uint8Array>): AsyncGenerator<string, void, undefined> {
  let rest = "";
  for await (const text of texts(body)) {
    // A \r at the end may be half a \r\n: it waits for what comes next.
    const whole = rest + text;
    const held = whole.endsWith("\r") ? "\r" : "";
    const found = whole.slice(0, whole.length - held.length).split(/\r\n|\n|\r/);
    rest = (found.pop() ?? "") + held;
    yield* found;
  }
}

/** Characters stay whole that arrive in two chunks. Whoever stops reading cancels the body. */
async function* texts(body: ReadableStream<Uint8Array>): AsyncGenerator<string, void, undefined> {
  const decoder = new TextDecoder();
  const reader = body.getReader(); // not `for await`: browsers cannot all iterate a stream
  try {
    for (let chunk = await reader.read(); !chunk.done; chunk = await reader.read()) {
      yield decoder.decode(chunk.value, { stream: true });
    }
  } finally {
    await reader.cancel().catch(() => undefined); // it may have broken already, which `read` has told
  }
}
