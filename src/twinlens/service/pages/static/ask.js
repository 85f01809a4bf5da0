// Answers: they get the focus, so that a screen reader goes on there; a correction sends the picture that was asked about; snippets get buttons that copy.

export function improve(part) {
  for (const input of part.querySelectorAll("[data-same-as]")) {
    const source = document.getElementById(input.dataset.sameAs);
    if (!source?.files.length) continue;
    input.files = source.files;
    input.closest(".field").hidden = true;
  }
  for (const button of part.querySelectorAll("[data-copy]")) {
    if (!navigator.clipboard || !button.hidden) continue;
    button.hidden = false;
    button.addEventListener("click", async () => {
      const block = button.closest(".copied");
      await navigator.clipboard.writeText(block.querySelector("pre").textContent);
      block.querySelector("[role=status]").textContent = button.dataset.copied;
    });
  }
}

improve(document);
document.addEventListener("htmx:after:swap", (event) => {
  const part = event.detail.ctx.target;
  improve(part);
  part.querySelector("[data-focus]")?.focus();
});
