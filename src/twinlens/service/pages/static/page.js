// For all pages: parts for browsers with and without scripts; what was mended gets the focus.

for (const one of document.querySelectorAll(".scripted")) one.hidden = false;
for (const one of document.querySelectorAll(".plain")) one.hidden = true;

document.addEventListener("htmx:after:swap", () => {
  const mended = document.querySelector("[data-mended-now]");
  mended?.removeAttribute("data-mended-now");
  mended?.focus();
});
