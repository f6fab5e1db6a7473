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
    this.tasks = tasks;
    this.isWhole = !after;
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
        askJson("GET", taskPath(beginning)).then((task) => [task]),
        askJson("GET", `tasks?limit=${NUM_SOUGHT}&after=${encodeURIComponent(beginning)}`).then((page) => page.tasks),
      ];
      const found = (await Promise.allSettled(sought)).flatMap((answer) => answer.value ?? []); // none may be called so
      const added = found.filter((task) => task.task_id.startsWith(beginning) && !this.find(task.task_id));
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

export function servedVersion(task) {
  return task.versions.find((version) => version.version === task.version);
}
