// A camera in a dialog with a <video>, [data-snap], [data-close] and [data-problem].

/**
 * Show the camera until it is closed.
 * @param {HTMLDialogElement} dialog
 * @param {{take: (picture: Blob) => void, closed?: () => void, problem: (reason: string) => string}} use
 */
export async function openCamera(dialog, { take, closed = () => {}, problem }) {
  const video = dialog.querySelector("video");
  const snap = dialog.querySelector("[data-snap]");
  const text = dialog.querySelector("[data-problem]");
  text.hidden = true;
  video.hidden = false;
  snap.disabled = true;
  dialog.showModal();
  const over = new AbortController();
  let stream = null;
  dialog.addEventListener("close", () => {
    over.abort();
    for (const track of stream?.getTracks() ?? []) track.stop();
    closed();
  }, { once: true });
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close(), { signal: over.signal });
  snap.addEventListener("click", async () => take(await still(video)), { signal: over.signal });
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
    if (over.signal.aborted) return;
    video.srcObject = stream;
    await video.play();
    snap.disabled = false;
  } catch (error) {
    video.hidden = true;
    text.textContent = problem(error.message);
    text.hidden = false;
  } finally {
    if (over.signal.aborted) for (const track of stream?.getTracks() ?? []) track.stop();
  }
}

function still(video) {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}
