/** Asks one server over `fetch`. Knows the routes for generating, whose types are the OpenAPI document's own. */

import {
  ConnectionFailed,
  errorFromEvent,
  errorFromResponse,
  InvalidRequest,
  isErrorBody,
  UnexpectedAnswer,
} from "./errors.js";
import { payloads } from "./events.js";
import type { components } from "./openapi.js";

type Schemas = components["schemas"];

/** `max_new_tokens`, `temperature`, `top_k`, `top_p`, `seed`, `stop`, `num_beams`, `details` … */
export type Parameters = Schemas["GenerateParameters"];
/** A task's id, `{ mix: { poet: 0.7, clerk: 0.3 } }`, or null for the bare backbone. */
export type TaskOrMix = string | Schemas["TaskMix"] | null;
export type Generation = Schemas["GenerateAnswer"];
export type Token = Schemas["TokenAnswer"];
export type Details = Schemas["DetailsAnswer"];

/** One token of a stream. The texts of all tokens joined are the generated text, which the last event alone has. */
export interface StreamEvent {
  index: number;
  token: Token;
  top_tokens: Token[] | null;
  generated_text: string | null;
  details: Pick<Details, "finish_reason" | "prompt_tokens" | "prefix_tokens" | "generated_tokens" | "seed" | "steps"> | null;
}

export interface ClientOptions {
  apiKey?: string;
  /** Another `fetch` than the platform's. */
  fetch?: typeof fetch;
}

export interface RequestOptions {
  /** Ends the request, and with it the work on the server. */
  signal?: AbortSignal;
}

/** Throws `ApiError` where the server says no, `ConnectionFailed` where none answers, `InvalidRequest` where there is
 * nothing to send. */
export class Client {
  readonly #url: string;
  readonly #headers: Record<string, string>;
  readonly #fetch: typeof fetch;

  constructor(url = "http://127.0.0.1:8000", options: ClientOptions = {}) {
    this.#url = checkedUrl(url).replace(/\/+$/, "");
    const authorization = options.apiKey === undefined ? {} : { authorization: `Bearer ${checkedKey(options.apiKey)}` };
    this.#headers = { "content-type": "application/json", ...authorization };
    this.#fetch = options.fetch ?? fetch.bind(globalThis);
  }

  /** Continue `inputs` as `task` does, or as a mix of several does; null is the bare backbone. */
  async generate(
    task: TaskOrMix,
    inputs: string,
    parameters: Parameters = {},
    options: RequestOptions = {},
  ): Promise<Generation> {
    const response = await this.#post("/generate", { task_id: task, inputs, parameters }, options.signal);
    const body = parsed(await told(response.text(), options.signal));
    if (typeof body !== "object" || body === null || !("generated_text" in body)) {
      throw new UnexpectedAnswer(`the answer of ${response.url} is not one of ours`);
    }
    return body as Generation;
  }

  /** As `generate`, token by token. The request goes out with the first `next`; leaving the loop ends it. */
  async *stream(
    task: TaskOrMix,
    inputs: string,
    parameters: Parameters = {},
    options: RequestOptions = {},
  ): AsyncGenerator<StreamEvent, void, undefined> {
    const response = await this.#post("/generate_stream", { task_id: task, inputs, parameters }, options.signal);
    if (response.body === null) {
      throw new UnexpectedAnswer(`the answer of ${response.url} has no body`);
    }
    const arriving = payloads(response.body);
    try {
      for (let next = await told(arriving.next(), options.signal); !next.done; ) {
        const event = eventOf(next.value, response);
        yield event;
        options.signal?.throwIfAborted();
        if (event.generated_text !== null) {
          return;
        }
        next = await told(arriving.next(), options.signal);
      }
    } finally {
      await arriving.return();
    }
    throw new ConnectionFailed(`the stream of ${response.url} broke off before its last event`);
  }

  async #post(path: string, body: Schemas["GenerateBody"], signal?: AbortSignal): Promise<Response> {
    const request = { method: "POST", headers: this.#headers, body: written(body), signal: signal ?? null };
    const response = await told(this.#fetch(this.#url + path, request), signal);
    if (!response.ok) {
      throw await told(errorFromResponse(response), signal);
    }
    return response;
  }
}

/** Messages leave the secrets out: they end up in logs. */
function checkedKey(apiKey: string): string {
  if (!/^[!-~]+$/.test(apiKey)) {
    throw new InvalidRequest(
      "the API key is empty, or holds a space or what no header can carry; expected printable ASCII",
    );
  }
  return apiKey;
}

function checkedUrl(url: string): string {
  if (/^[a-z]+:\/\/[^/]*@/i.test(url)) {
    throw new InvalidRequest("the URL holds a name or a password; a key is given as apiKey");
  }
  return url;
}

/** As JSON, or not at all: `JSON.stringify` writes null for NaN, and the server would take its default. */
function written(body: unknown): string {
  return JSON.stringify(body, (name, value: unknown) => {
    const isUnsafe = typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
    if (typeof value === "bigint" || isUnsafe || (typeof value === "number" && !Number.isFinite(value))) {
      throw new InvalidRequest(`${name} is ${value}, which JSON or JavaScript has no exact form for`);
    }
    return value;
  });
}

/** What the network brings. Its own errors become ours; an abort stays the signal's reason. */
async function told<T>(arriving: Promise<T>, signal?: AbortSignal): Promise<T> {
  try {
    return await arriving;
  } catch (error) {
    if (signal?.aborted) {
      throw signal.reason;
    }
    throw new ConnectionFailed(`no whole answer: ${reasonOf(error)}`, { cause: error });
  }
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) {
    return String(error);
  }
  return error.cause instanceof Error && error.cause.message ? error.cause.message : error.message;
}

function eventOf(payload: string, response: Response): StreamEvent {
  const body = parsed(payload);
  if (isErrorBody(body)) {
    throw errorFromEvent(body, response.headers.get("x-request-id"));
  }
  if (typeof body !== "object" || body === null || !("token" in body)) {
    throw new UnexpectedAnswer(`an event of ${response.url} is not one of ours: ${payload.slice(0, 200)}`);
  }
  return body as StreamEvent;
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new UnexpectedAnswer(`not JSON: ${text.slice(0, 200)}`, { cause: error });
  }
}
