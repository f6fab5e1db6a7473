import assert from "node:assert/strict";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { readFile } from "node:fs/promises";
import path from "node:path";
import { after, before, describe, it } from "node:test";
import openapiTS, { astToString } from "openapi-typescript";

import {
  ApiError,
  Client,
  ConnectionFailed,
  InvalidRequest,
  NotFound,
  Overloaded,
  UnexpectedAnswer,
  ValidationFailed,
} from "../src/index.js";
import type { StreamEvent } from "../src/index.js";
import { CLIENT, startServer, type Server } from "./server.js";

const INPUTS = "name : Blue Spice | Type : pub";

async function all(events: AsyncIterable<StreamEvent>): Promise<StreamEvent[]> {
  const found: StreamEvent[] = [];
  for await (const event of events) {
    found.push(event);
  }
  return found;
}

describe("a real server", () => {
  let server: Server;
  let client: Client;

  before(async () => {
    server = await startServer();
    client = new Client(server.url);
  });
  after(() => server.end());

  it("generates", async () => {
    const answer = await client.generate("e2e", INPUTS, { max_new_tokens: 12, details: true });
    assert.equal(answer.task_id, "e2e");
    assert.equal(answer.details?.tokens.length, answer.details?.generated_tokens);
    assert.equal(answer.details?.tokens.map((token) => token.text).join(""), answer.generated_text);
  });

  it("streams the same text, token by token", async () => {
    const parameters = { max_new_tokens: 60, do_sample: true, temperature: 5, seed: 7 };
    const answer = await client.generate("e2e", "a\u2028b 🌊 שלום", parameters);
    const events = await all(client.stream("e2e", "a\u2028b 🌊 שלום", parameters));
    assert.deepEqual(events.map((event) => event.index), events.map((_, i) => i + 1));
    assert.equal(events.map((event) => event.token.text).join(""), answer.generated_text);
    assert.equal(events.at(-1)?.generated_text, answer.generated_text);
    assert.equal(events.at(-1)?.details?.finish_reason, "length");
  });

  it("refuses with a class, a code and the request's id", async () => {
    await assert.rejects(client.generate("nobody", INPUTS), NotFound);
    await assert.rejects(all(client.stream("nobody", INPUTS)), NotFound);
    await assert.rejects(client.generate("e2e", INPUTS, { top_k: -1 }), (error) => {
      assert.ok(error instanceof ValidationFailed);
      assert.equal(error.status, 422);
      assert.equal(error.code, "validation");
      assert.ok(error.requestId);
      return true;
    });
  });

  it("is aborted with the signal's reason", async () => {
    const leaving = new AbortController();
    const reason = new Error("not needed any more");
    const events = client.stream("e2e", INPUTS, { max_new_tokens: 200, min_new_tokens: 200 }, { signal: leaving.signal });
    await events.next();
    leaving.abort(reason);
    await assert.rejects(all(events), reason);
    await assert.rejects(client.generate("e2e", INPUTS, {}, { signal: AbortSignal.abort(reason) }), reason);
  });

  it("ends a stream at the abort, though more of it has arrived", async () => {
    const leaving = new AbortController();
    const reason = new Error("enough");
    const events = client.stream("e2e", INPUTS, { max_new_tokens: 30, min_new_tokens: 30 }, { signal: leaving.signal });
    await events.next();
    await new Promise((resolve) => setTimeout(resolve, 1000)); // by then all of it is here
    leaving.abort(reason);
    await assert.rejects(events.next(), reason);
  });

  it("sends nothing that has no exact form, and tells no secret", async () => {
    for (const temperature of [NaN, Infinity]) {
      await assert.rejects(client.generate("e2e", INPUTS, { temperature }), InvalidRequest);
    }
    await assert.rejects(client.generate("e2e", INPUTS, { seed: 2 ** 53 }), /seed is 9007199254740992/);
    for (const options of [{ apiKey: "pp_secret\nabc" }, { apiKey: "" }]) {
      assert.throws(
        () => new Client(server.url, options),
        (error) => error instanceof InvalidRequest && !error.message.includes("secret"),
      );
    }
    assert.throws(
      () => new Client("http://me:geheim@127.0.0.1:1"),
      (error) => error instanceof InvalidRequest && !error.message.includes("geheim"),
    );
  });

  it("leaves a stream early", async () => {
    for await (const event of client.stream("e2e", INPUTS, { max_new_tokens: 200 })) {
      assert.equal(event.index, 1);
      break;
    }
  });

  it("writes the document that the committed types were made from", async () => {
    const types = await openapiTS(new URL("/openapi.json", server.url), { defaultNonNullable: false });
    const committed = await readFile(path.join(CLIENT, "src/openapi.ts"), "utf8");
    assert.ok(committed.endsWith(astToString(types)), "make typescript-types");
  });
});

describe("a server that says what a test tells it to", () => {
  async function answered<T>(listener: RequestListener, ask: (client: Client) => Promise<T>): Promise<T> {
    const server = createServer(listener).listen(0, "127.0.0.1");
    try {
      await new Promise((resolve) => server.once("listening", resolve));
      return await ask(new Client(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`, { apiKey: "secret" }));
    } finally {
      server.closeAllConnections();
      server.close();
    }
  }

  function streaming(...chunks: string[]): RequestListener {
    return (_, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      chunks.forEach((chunk) => response.write(chunk));
      response.end();
    };
  }

  const first = 'data: {"index":1,"token":{"id":1,"text":"The"},"generated_text":null,"details":null}\n\n';

  it("is asked with the key", async () => {
    const asked = await answered(
      (request, response) => response.end(JSON.stringify({ generated_text: request.headers.authorization })),
      (client) => client.generate(null, INPUTS),
    );
    assert.equal(asked.generated_text, "Bearer secret");
  });

  it("tells how long to wait", async () => {
    const busy: RequestListener = (_, response) => {
      response.writeHead(429, { "retry-after": "7" });
      response.end('{"error": "full", "error_type": "overloaded"}');
    };
    await assert.rejects(answered(busy, (client) => client.generate("e2e", INPUTS)), (error) => {
      assert.ok(error instanceof Overloaded);
      assert.deepEqual([error.code, error.retryAfter], ["overloaded", 7]);
      return true;
    });
  });

  it("may be something in between", async () => {
    const proxy: RequestListener = (_, response) => response.writeHead(502).end("<html>");
    await assert.rejects(answered(proxy, (client) => client.generate("e2e", INPUTS)), (error) => {
      assert.ok(error instanceof ApiError);
      assert.deepEqual([error.code, error.message], ["http_502", "<html> (502 http_502)"]);
      return true;
    });
    const page: RequestListener = (_, response) => response.end("<html>");
    await assert.rejects(answered(page, (client) => client.generate("e2e", INPUTS)), UnexpectedAnswer);
  });

  it("may fail in the middle of a stream", async () => {
    const failing = streaming(first, 'data: {"error": "not finite", "error_type": "generation"}\n\n');
    await assert.rejects(answered(failing, (client) => all(client.stream("e2e", INPUTS))), {
      name: "GenerationFailed",
      status: 424,
    });
  });

  it("may break a stream off", async () => {
    await assert.rejects(answered(streaming(first), (client) => all(client.stream("e2e", INPUTS))), ConnectionFailed);
  });

  it("may not be there", async () => {
    await assert.rejects(new Client("http://127.0.0.1:9").generate("e2e", INPUTS), ConnectionFailed);
  });
});
