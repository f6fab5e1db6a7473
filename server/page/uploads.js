// Uploads of prefixes, by choice or by drag and drop, each with its progress and with what became of it.

import { headers, refusalOf, Refusal, taskPath } from "./api.js";
import { catalogue } from "./catalogue.js";
import { byId, bytes, count, make } from "./dom.js";

const form = byId("upload");
const view = byId("view-tasks");

function upload(file) {
  const taskId = byId("upload-id").value.trim() || file.name.replace(/\.safetensors$/, "");
  const progress = make("progress", { max: file.size || 1, value: 0, "aria-label": `Upload of ${taskId}` });
  const outcome = make("p", { class: "facts", role: "status" }, `sending ${bytes(file.size)}`);
  byId("uploads").prepend(make("li", {}, make("strong", {}, taskId), progress, outcome));
  send(taskId, file, (numBytes) => {
    progress.value = numBytes;
    if (numBytes >= file.size) outcome.textContent = "sent; the backbone tries it out";
  })
    .then((answer) => {
      progress.remove();
      const size = count(answer.num_virtual_tokens, "virtual token");
      const doubt = answer.backbone_checked ? "" : "; the file does not say for which backbone it was made";
      outcome.textContent = `version ${answer.version} is served: ${size}${doubt}`;
      catalogue.reload();
    })
    .catch((error) => {
      progress.remove();
      outcome.textContent = error.message;
      outcome.className = "refusal";
      outcome.setAttribute("role", "alert");
    });
}

/** `fetch` tells no progress of what it sends; XMLHttpRequest does. Rejects with a `Refusal`. */
function send(taskId, file, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", taskPath(taskId));
    request.setRequestHeader("content-type", "application/octet-stream");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => onProgress(event.loaded));
    request.addEventListener("load", () => {
      if (request.status < 300) resolve(JSON.parse(request.responseText));
      else reject(refusalOf(request.status, request.responseText));
    });
    request.addEventListener("error", () =>
      reject(new Refusal(0, "the connection was cut: the file is larger than any prefix, or the server is gone")),
    );
    request.send(file);
  });
}

byId("files").addEventListener("change", (event) => {
  for (const file of event.target.files) upload(file);
  event.target.value = "";
});
form.addEventListener("submit", (event) => event.preventDefault());
view.addEventListener("dragover", (event) => {
  event.preventDefault();
  form.classList.add("over");
});
view.addEventListener("dragleave", (event) => {
  if (!view.contains(event.relatedTarget)) form.classList.remove("over");
});
view.addEventListener("drop", (event) => {
  event.preventDefault();
  form.classList.remove("over");
  for (const file of event.dataTransfer.files) upload(file);
});
