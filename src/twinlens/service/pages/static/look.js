// Sends a chosen picture at once, and tells screen readers what has changed.

for (const form of document.querySelectorAll("[data-send-at-once]")) {
  form.addEventListener("change", () => form.requestSubmit());
}

document.addEventListener("htmx:after:swap", () => {
  document.getElementById("pairs")?.removeAttribute("aria-busy");
  const counts = document.querySelector("[data-counts]")?.textContent ?? "";
  const said = document.querySelector("[data-said]");
  if (said.textContent !== counts) said.textContent = counts;
});
