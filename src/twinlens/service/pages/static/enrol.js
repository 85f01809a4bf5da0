// Enrolment in batches below the limits of a request, with progress. Without scripts the form sends
// all pictures at once.

import { improve } from "./ask.js";

const MOST_FILES = 16;
const MOST_BYTES = 24 * 2 ** 20;

function batches(files) {
  const parts = [];
  let size = Infinity;
  for (const file of files) {
    const part = parts.at(-1);
    if (!part || part.length >= MOST_FILES || size + file.size > MOST_BYTES) {
      parts.push([file]);
      size = file.size;
    } else {
      part.push(file);
      size += file.size;
    }
  }
  return parts;
}

// What the page says of the gallery, after it has grown.
async function renew() {
  const answer = await fetch(location.href);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const id of ["holds", "enrolled"]) {
    document.getElementById(id).replaceWith(page.getElementById(id));
  }
}

async function send(form) {
  const find = (selector) => form.querySelector(selector);
  const input = find("input[type=file]");
  const [button, bar, count, results] = [find("button.main:not([type])"), find("progress"), find("[data-count]"), find("[data-results]")];
  const files = [...input.files];
  button.disabled = true;
  bar.hidden = false;
  bar.max = files.length;
  results.replaceChildren();
  let done = 0;
  for (const part of batches(files)) {
    bar.value = done;
    count.textContent = form.dataset.progress.replace("{done}", done).replace("{total}", files.length);
    const body = new FormData(form);
    body.delete(input.name);
    for (const file of part) body.append(input.name, file);
    try {
      const answer = await fetch(form.action, { method: "POST", body, headers: { "HX-Request": "true" } });
      if (answer.headers.get("Content-Type").startsWith("text/html")) {
        results.insertAdjacentHTML("beforeend", await answer.text());
      } else {
        results.append((await answer.json()).error.message);
      }
    } catch {
      count.textContent = form.dataset.failed;
      break;
    }
    done += part.length;
  }
  improve(results);
  await renew();
  bar.hidden = true;
  button.disabled = false;
  if (done === files.length) {
    count.textContent = "";
    input.value = "";
    input.dispatchEvent(new Event("change"));
  }
}

for (const form of document.querySelectorAll("form[data-batches]")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form);
  });
}
