// Asks the server, with the key that this tab keeps. Knows HTTP; knows nothing of elements.

const KEY = "polyprefix.key";

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (secret) => sessionStorage.setItem(KEY, secret),
  drop: () => sessionStorage.removeItem(KEY),
};

/** What the server refused, in its own words; `status` 0 where it could not be reached. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function headers() {
  const secret = key.get();
  return secret === null ? {} : { authorization: `Bearer ${secret}` };
}

/** What goes wrong everywhere in the same way: no key, or none that is good. */
export function refusalOf(status, body) {
  if (status === 401) dispatchEvent(new Event("unauthorized"));
  let message = `the server answered ${status}`;
  try {
    message = JSON.parse(body).error ?? message;
  } catch {
    // a proxy's page, not the server's JSON
  }
  return new Refusal(status, message);
}

/** A successful response. Throws a `Refusal`. */
export async function ask(method, path, { json, signal } = {}) {
  const options = { method, signal, headers: headers(), cache: "no-store" };
  if (json !== undefined) {
    options.body = JSON.stringify(json);
    options.headers["content-type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refusal(0, "the server cannot be reached");
  }
  if (!response.ok) throw refusalOf(response.status, await response.text());
  return response;
}

export async function askJson(method, path, options) {
  return (await ask(method, path, options)).json();
}

/** The values of a response's server-sent events. Throws a `Refusal` where one of them tells an error. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const pieces = (unread + value).split("\n\n");
      unread = pieces.pop();
      for (const piece of pieces) {
        if (!piece.startsWith("data: ")) continue; // a keep-alive
        const event = JSON.parse(piece.slice("data: ".length));
        if (event.error !== undefined) throw new Refusal(response.status, event.error);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

export const taskPath = (taskId) => `tasks/${encodeURIComponent(taskId)}`;
