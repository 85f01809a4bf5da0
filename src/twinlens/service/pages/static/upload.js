// Uploads pictures one by one, two at the same time, and tries again what fails for a while.

const AT_ONCE = 2;
const TRIES = 4;
const LATER = new Set([408, 429, 502, 503, 504]);

/**
 * Upload pictures.
 * @param {{file: File, path: string, identity: string | null}[]} pictures
 * @param {string} url takes one picture, with `identity` as a query parameter
 * @param {AbortSignal} signal ends it
 * @param {string} offline reason of a picture for which no answer came
 * @param {(answers: object[]) => void} sent called for each picture that was answered
 * @returns {Promise<object[]>} the pictures that failed, with `reason`
 */
export async function upload(pictures, url, signal, offline, sent) {
  const waiting = pictures.values();
  const failed = [];
  async function work() {
    for (const picture of waiting) {
      if (signal.aborted) return;
      try {
        sent(await send(picture, url, signal));
      } catch (error) {
        if (signal.aborted) return;
        failed.push({ ...picture, reason: error instanceof Refused ? error.message : offline });
      }
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  return failed;
}

class Refused extends Error {}

async function send(picture, url, signal) {
  const query = picture.identity === null ? "" : `?identity=${encodeURIComponent(picture.identity)}`;
  for (let tries = 1; ; tries += 1) {
    const body = new FormData();
    body.append("picture", picture.file, picture.file.name);
    let answer = null;
    try {
      answer = await fetch(url + query, { method: "POST", body, signal });
    } catch (error) {
      if (signal.aborted || tries === TRIES) throw error;
    }
    if (answer?.ok) return (await answer.json()).added;
    if (answer && (!LATER.has(answer.status) || tries === TRIES)) throw new Refused(await reason(answer));
    await pause(1000 * Math.max(Number(answer?.headers.get("Retry-After") ?? 0), 2 ** (tries - 1)), signal);
  }
}

async function reason(answer) {
  const body = await answer.json().catch(() => null);
  return body?.error?.message ?? `${answer.status} ${answer.statusText}`;
}

function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}
