/** A real server on the embedded model, in a process of its own. */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { createInterface } from "node:readline";

export const CLIENT = path.resolve(import.meta.dirname, "../..");
const ROOT = path.resolve(CLIENT, "../..");
const PYTHON = process.env["POLYPREFIX_PYTHON"] ?? path.join(ROOT, ".venv/bin/python");
const PREFIX = path.join(ROOT, "polyprefix/pocket/prefixes/e2e.safetensors");

export interface Server {
  url: string;
  end(): Promise<void>;
}

/** It has the task `e2e`. */
export async function startServer(): Promise<Server> {
  const directory = await mkdtemp(path.join(tmpdir(), "polyprefix-"));
  const options = ["--port", "0", "--dtype", "float32", "--store", path.join(directory, "store")];
  const child = spawn(PYTHON, ["-m", "polyprefix", "serve", ...options], {
    cwd: ROOT,
    stdio: ["ignore", "pipe", "ignore"],
  });
  const [url] = await Promise.race([once(createInterface(child.stdout), "line"), once(child, "exit")]);
  if (typeof url !== "string") {
    throw new Error(`no server: ${PYTHON} -m polyprefix serve ${options.join(" ")} ended with ${url}`);
  }
  const upload = await fetch(`${url}/tasks/e2e`, {
    method: "PUT",
    headers: { "content-type": "application/octet-stream" },
    body: new Uint8Array(await readFile(PREFIX)),
  });
  if (!upload.ok) {
    throw new Error(await upload.text());
  }
  return {
    url,
    async end() {
      child.kill();
      await once(child, "exit");
      await rm(directory, { recursive: true });
    },
  };
}
