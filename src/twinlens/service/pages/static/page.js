// For all pages: parts for browsers with and without scripts; what was mended gets the focus.

for (const one of document.querySelectorAll(".scripted")) one.hidden = false;
for (const one of document.querySelectorAll(".plain")) one.hidden = true;

// The summary of a set is looked at again after a change; what was done then stands above it.
let done = null;

document.addEventListener("htmx:after:swap", (event) => {
  const mended = document.querySelector("[data-mended-now]");
  mended?.removeAttribute("data-mended-now");
  mended?.focus();
  if (mended?.closest("#summary")) {
    done = mended;
    setTimeout(() => document.body.dispatchEvent(new Event("pictures-changed")));
  } else if (done && event.detail.ctx.target.id === "summary") {
    event.detail.ctx.target.prepend(done);
    done.focus({ preventScroll: true });
    done = null;
  }
});
