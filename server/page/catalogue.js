// The tasks that the key may see, loaded once and again after each change; of very many those that are looked for.
// Knows nothing of how they are shown.

import { askJson, taskPath } from "./api.js";
import { colourClass } from "./colours.js";

const PAGE = 500;
const MAX_TASKS = 2000; // more than anybody reads
const NUM_SOUGHT = 100;
const PAUSE = 300; // ms without typing, after which the server is asked

export const catalogue = new (class extends EventTarget {
  tasks = [];
  isLoaded = false;
  #loading = 0; // the newest load's number: what an older one finds is out of date
  #seeking; // a timer
  #beginning = ""; // of the names that were looked for beyond those
  isWhole = true; // else there are more tasks than are loaded
  problem = ""; // why the list is not what it should be

  async load() {
    const mine = ++this.#loading;
    const tasks = [];
    let after = "";
    do {
      const page = await askJson("GET", `tasks?limit=${PAGE}${after && `&after=${encodeURIComponent(after)}`}`);
      tasks.push(...page.tasks);
      after = page.next;
    } while (after && tasks.length < MAX_TASKS);
    const known = new Set(tasks.map((task) => task.task_id));
    const sought = after && this.#beginning ? await begunSo(this.#beginning) : [];
    if (mine !== this.#loading) return;
    this.isWhole = !after;
    this.tasks = [...tasks, ...sought.filter((task) => !known.has(task.task_id))];
    this.isLoaded = true;
    this.problem = "";
    for (const task of this.tasks) colourClass(task.task_id); // in the order of the list
    this.dispatchEvent(new Event("change"));
  }

  /** Where there are more tasks than are loaded, add those that begin so. */
  seek(beginning) {
    clearTimeout(this.#seeking);
    if (this.isWhole || !beginning) return;
    this.#seeking = setTimeout(async () => {
      this.#beginning = beginning;
      const added = (await begunSo(beginning)).filter((task) => !this.find(task.task_id));
      if (added.length === 0) return;
      this.tasks.push(...added);
      this.dispatchEvent(new Event("change"));
    }, PAUSE);
  }

  /** Load again after a change. What went wrong here is no failure of the change, so it is told beside the list. */
  async reload() {
    try {
      await this.load();
    } catch (error) {
      this.problem = `the list could not be loaded: ${error.message}`;
      this.dispatchEvent(new Event("change"));
    }
  }

  find(taskId) {
    return this.tasks.find((task) => task.task_id === taskId);
  }
})();

/** The task of this very name, which may be nobody's, and the first of those whose names go on. */
async function begunSo(beginning) {
  const asked = [
    askJson("GET", taskPath(beginning)),
    askJson("GET", `tasks?limit=${NUM_SOUGHT}&after=${encodeURIComponent(beginning)}`).then((page) => page.tasks),
  ];
  const found = (await Promise.allSettled(asked)).filter(({ status }) => status === "fulfilled");
  return found.flatMap(({ value }) => value).filter((task) => task.task_id.startsWith(beginning));
}

export function servedVersion(task) {
  return task.versions.find((version) => version.version === task.version);
}
