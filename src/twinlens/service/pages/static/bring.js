// Takes folders, files and pictures of the camera, shows what was understood, and uploads file by file.
import { openCamera } from "./camera.js";
import { isPicture, plan, readDropped } from "./folders.js";
import { upload } from "./upload.js";

const form = document.getElementById("bring");
const texts = JSON.parse(form.dataset.texts);
const suffixes = new Set(form.dataset.suffixes.split(" "));
const part = (name) => form.querySelector(`[data-${name}]`);
const say = (key, values = {}) => (values.count === 1 && texts[`${key}_one`] || texts[key]).replace(/\{(\w+)\}/g, (_, name) => values[name]);
const named = () => form.elements.identity.value.trim() || null;
const inOrder = new Intl.Collator(undefined, { numeric: true }).compare;
const MILESTONE = 10; // per cent, between two messages to screen readers

function element(name, text, more = {}) {
  return Object.assign(document.createElement(name), { textContent: text, ...more });
}

function status(text) {
  part("status").textContent = text;
}

// --- what was understood, before anything is sent ---

function offer(files) {
  if (!files.length) return;
  const pictures = files.filter((one) => isPicture(one.path, suffixes));
  if (!pictures.length) {
    status(say("nothing", { count: files.length }));
    return;
  }
  const understood = plan(pictures, named());
  const box = part("plan");
  const lines = [];
  const numbers = new Map();
  for (const one of understood.pictures) numbers.set(one.identity, (numbers.get(one.identity) ?? 0) + 1);
  const unsorted = numbers.get(null) ?? 0;
  numbers.delete(null);
  const sorted = understood.pictures.length - unsorted;
  if (numbers.size === 1) lines.push(say("plan_named", { count: sorted, identity: [...numbers.keys()][0] }));
  if (numbers.size > 1) {
    lines.push(say("plan", { pictures: sorted, identities: numbers.size }));
    lines.push(say("plan_examples", { names: some([...numbers.keys()].sort(inOrder)) }));
  }
  if (unsorted) lines.push(say("plan_unsorted", { count: unsorted }));
  const others = files.filter((one) => !isPicture(one.path, suffixes));
  if (others.length) lines.push(say("plan_left_out", { count: others.length, names: some(others.map((one) => one.file.name)) }));
  box.replaceChildren(...lines.map((line) => element("p", line)));
  if (understood.folder !== null) box.append(question(understood));
  const start = element("button", say("start"), { type: "button", className: "main" });
  const cancel = element("button", say("cancel"), { type: "button" });
  const buttons = element("div", "", { className: "row" });
  buttons.append(start, cancel);
  box.append(buttons);
  box.hidden = false;
  start.addEventListener("click", () => { box.hidden = true; send(understood.pictures); });
  cancel.addEventListener("click", () => { box.hidden = true; status(""); });
  status("");
  box.focus();
}

// One folder without others in it: is it a name, or a pile?
function question(understood) {
  const group = element("fieldset", "", { className: "choices" });
  group.append(element("legend", say("loose", { folder: understood.folder })));
  const choices = [["loose_all", understood.folder], ["loose_unsorted", null]];
  choices.forEach(([key, identity], at) => {
    const label = element("label", "");
    const radio = element("input", "", { type: "radio", name: "loose", checked: at === 0 });
    radio.addEventListener("change", () => { for (const one of understood.pictures) one.identity = identity; });
    label.append(radio, say(key, { folder: understood.folder }));
    group.append(label);
  });
  return group;
}

function some(names, most = 6) {
  const more = names.length > most ? `, ${say("and_more", { count: names.length - most })}` : "";
  return names.slice(0, most).join(", ") + more;
}

// --- uploading ---

let stop = null;

async function send(pictures) {
  const bar = part("work").querySelector("progress");
  const counts = { stored: 0, duplicate: 0, contradiction: 0, refused: 0 };
  let [done, told] = [0, 0];
  stop = new AbortController();
  part("work").hidden = false;
  part("failures").hidden = true;
  bar.max = pictures.length;
  const show = () => {
    bar.value = done;
    part("count").textContent = say("count", { done, total: pictures.length });
    const percent = Math.floor((100 * done) / pictures.length);
    if (percent >= told + MILESTONE && percent < 100) {
      told = percent;
      status(say("percent", { percent }));
    }
  };
  show();
  const failed = await upload(pictures, form.dataset.url, stop.signal, texts.offline, (answers) => {
    done += 1;
    for (const answer of answers) counts[answer.state] += 1;
    show();
  });
  part("work").hidden = true;
  status(stop.signal.aborted ? say("stopped", { done, total: pictures.length }) : [say("done"), ...Object.entries(counts).filter(([, count]) => count).map(([state, count]) => say(`done_${state}`, { count }))].join(" "));
  showFailures(failed);
  document.body.dispatchEvent(new Event("pictures-changed"));
}

function showFailures(failed) {
  const box = part("failures");
  box.hidden = !failed.length;
  if (!failed.length) return;
  const list = element("ul", "");
  for (const one of failed.slice(0, 20)) list.append(element("li", `${one.path}: ${one.reason}`));
  const again = element("button", say("retry"), { type: "button" });
  again.addEventListener("click", () => send(failed));
  box.replaceChildren(element("h3", say("failed", { count: failed.length })), list, again);
}

part("stop").addEventListener("click", () => stop?.abort());

// --- where pictures come from ---

for (const input of form.querySelectorAll('input[type="file"]')) {
  input.addEventListener("change", () => {
    offer([...input.files].map((file) => ({ file, path: file.webkitRelativePath || file.name })));
    input.value = ""; // The same folder can be chosen again.
  });
}

addEventListener("dragover", (event) => {
  event.preventDefault();
  form.classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) form.classList.remove("over");
});
addEventListener("drop", async (event) => {
  event.preventDefault();
  form.classList.remove("over");
  status(say("reading"));
  offer(await readDropped(event.dataTransfer));
});
addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) offer(files.map((file) => ({ file, path: file.name })));
});
form.addEventListener("submit", (event) => event.preventDefault());

const dialog = document.getElementById("camera");
part("camera").addEventListener("click", () => {
  let [taken, waiting] = [0, []];
  openCamera(dialog, {
    problem: (reason) => say("no_camera", { reason }),
    take: (blob) => {
      taken += 1;
      const name = `camera-${new Date().toISOString().replace(/[:.]/g, "-")}.jpg`;
      waiting.push({ file: new File([blob], name, { type: blob.type }), path: name, identity: named() });
      dialog.querySelector("[data-snapped]").textContent = say("snapped", { count: taken });
    },
    closed: () => {
      dialog.querySelector("[data-snapped]").textContent = "";
      if (waiting.length) send(waiting);
    },
  });
});
