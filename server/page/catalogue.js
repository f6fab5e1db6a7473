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
  #seeking; // a timer
  #sought = []; // the names of tasks that were found beyond those
  isWhole = true; // else there are more tasks than are loaded
  problem = ""; // why the list is not what it should be

  async load() {
    const tasks = [];
    let after = "";
    do {
      const page = await askJson("GET", `tasks?limit=${PAGE}${after && `&after=${encodeURIComponent(after)}`}`);
      tasks.push(...page.tasks);
      after = page.next;
    } while (after && tasks.length < MAX_TASKS);
    this.isWhole = !after;
    const others = this.isWhole ? [] : this.#sought.filter((name) => !tasks.some((task) => task.task_id === name));
    tasks.push(...(await found(others.map((name) => askJson("GET", taskPath(name))))));
    this.tasks = tasks;
    this.isLoaded = true;
    this.problem = "";
    for (const task of tasks) colourClass(task.task_id); // in the order of the list
    this.dispatchEvent(new Event("change"));
  }

  /** Where there are more tasks than are loaded, add those that begin so. */
  seek(beginning) {
    clearTimeout(this.#seeking);
    if (this.isWhole || !beginning) return;
    this.#seeking = setTimeout(async () => {
      const sought = [
        askJson("GET", taskPath(beginning)),
        askJson("GET", `tasks?limit=${NUM_SOUGHT}&after=${encodeURIComponent(beginning)}`).then((page) => page.tasks),
      ];
      const tasks = (await found(sought)).flat().filter((task) => task.task_id.startsWith(beginning));
      const added = tasks.filter((task) => !this.find(task.task_id));
      if (added.length === 0) return;
      this.tasks.push(...added);
      this.#sought = [...added.map((task) => task.task_id), ...this.#sought].slice(0, NUM_SOUGHT);
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

/** The answers of those that there are: a name may be nobody's. */
async function found(asked) {
  return (await Promise.allSettled(asked)).filter(({ status }) => status === "fulfilled").map(({ value }) => value);
}

export function servedVersion(task) {
  return task.versions.find((version) => version.version === task.version);
}
