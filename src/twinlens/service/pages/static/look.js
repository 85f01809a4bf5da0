// Sends a chosen picture at once, and says that the computation has ended.

for (const one of document.querySelectorAll(".plain")) one.hidden = true;

for (const form of document.querySelectorAll("[data-send-at-once]")) {
  form.addEventListener("change", () => form.requestSubmit());
}
document.addEventListener("htmx:after:swap", () => document.getElementById("pairs")?.removeAttribute("aria-busy"));
