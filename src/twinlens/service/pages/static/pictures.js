// Fields for pictures: file, drop, clipboard or camera, with a preview. Without scripts they are
// plain file inputs.

import { openCamera } from "./camera.js";

const fields = [];

function choose(field, files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/"));
  if (!pictures.length) return false;
  const transfer = new DataTransfer();
  const before = field.input.multiple ? [...field.input.files] : [];
  for (const file of field.input.multiple ? [...before, ...pictures] : pictures.slice(0, 1)) {
    transfer.items.add(file);
  }
  field.input.files = transfer.files;
  show(field);
  return true;
}

function show(field) {
  for (const image of field.preview.querySelectorAll("img")) URL.revokeObjectURL(image.src);
  field.preview.replaceChildren(...[...field.input.files].slice(0, 24).map((file) => {
    const image = document.createElement("img");
    image.alt = file.name;
    image.addEventListener("error", () => image.replaceWith(file.name)); // A format of no browser.
    image.src = URL.createObjectURL(file);
    const item = document.createElement("li");
    item.append(image);
    return item;
  }));
  field.preview.hidden = !field.input.files.length;
}

function photograph(field) {
  const dialog = document.getElementById("camera");
  openCamera(dialog, {
    take: (blob) => {
      const name = `camera-${new Date().toISOString().replaceAll(/[:.]/g, "-")}.jpg`;
      choose(field, [new File([blob], name, { type: "image/jpeg" })]);
      if (!field.input.multiple) dialog.close();
    },
    closed: () => field.open.focus(),
    problem: () => field.root.dataset.noCamera,
  });
}

function setUp(root) {
  const find = (selector) => root.querySelector(selector);
  const field = {
    root, input: find("input[type=file]"), preview: find("[data-preview]"),
    status: find("[data-status]"), open: find("[data-open]"),
  };
  fields.push(field);
  find("[data-tools]").hidden = false;
  field.open.hidden = !navigator.mediaDevices?.getUserMedia;
  field.open.addEventListener("click", () => photograph(field));
  field.input.addEventListener("change", () => show(field));
  root.addEventListener("dragover", (event) => {
    event.preventDefault();
    root.classList.add("over");
  });
  root.addEventListener("dragleave", () => root.classList.remove("over"));
  root.addEventListener("drop", (event) => {
    event.preventDefault();
    root.classList.remove("over");
    choose(field, event.dataTransfer.files);
  });
  show(field); // Files that the browser kept over a reload.
}

document.addEventListener("paste", (event) => {
  const files = event.clipboardData?.files ?? [];
  const field = fields.find((one) => one.root.contains(document.activeElement))
    ?? fields.find((one) => !one.input.files.length) ?? fields[0];
  if (field && files.length && choose(field, files)) {
    event.preventDefault();
    field.status.textContent = field.root.dataset.pasted;
  }
});

for (const root of document.querySelectorAll("[data-pictures]")) setUp(root);
