/** The page: pictures from files, drops and the camera; the answer in words and numbers. */

import { isMatch, probability } from "./compare.js";
import { decodeFile, decodeFrame } from "./decode.js";
import { loadModel } from "./model.js";
import { draftFactor, networkInput } from "./pixels.js";

const AGREES = 1e-4; // relative to distances above 1
const element = (id) => document.getElementById(id);
const answer = element("answer");

let model = null;
let newest = 0; // comparison; older ones are not shown
const sides = [...document.querySelectorAll(".side")].map(makeSide);

// --- the two pictures ---------------------------------------------------------------------------

function makeSide(section) {
  const part = (name) => section.querySelector(name);
  const side = {
    section,
    title: part("h2").textContent,
    image: part("img"),
    video: part("video"),
    view: part(".view"),
    hint: part(".hint"),
    file: part(".file"),
    camera: part(".camera"),
    filming: [part(".shoot"), part(".stop")],
    picture: null, // {raster, isJpeg, isExact}
    turn: 0, // of the files chosen; a slow one does not replace a later one
  };
  const input = part("input");
  input.addEventListener("change", () => {
    if (input.files.length > 0) take(side, input.files[0], input.files[0].name);
    input.value = ""; // The same file can be chosen again.
  });
  section.addEventListener("dragover", (event) => {
    event.preventDefault();
    section.classList.add("over");
  });
  section.addEventListener("dragleave", () => section.classList.remove("over"));
  section.addEventListener("drop", (event) => {
    event.preventDefault();
    section.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file === undefined) sayWrong(side, "Only files can be dropped here.");
    else take(side, file, file.name);
  });
  // Cameras exist on secure pages only: https, or this machine.
  side.camera.hidden = navigator.mediaDevices?.getUserMedia === undefined;
  side.camera.addEventListener("click", () => film(side));
  side.filming[0].addEventListener("click", () => shoot(side));
  side.filming[1].addEventListener("click", () => stopFilming(side));
  return side;
}

async function take(side, file, name) {
  stopFilming(side);
  const turn = ++side.turn;
  try {
    const picture = await decodeFile(file);
    if (turn === side.turn) show(side, picture, file, name);
  } catch {
    if (turn === side.turn) sayWrong(side, `${name} is not a picture that this browser can read.`);
  }
}

function show(side, picture, blob, name) {
  URL.revokeObjectURL(side.image.src);
  side.image.src = URL.createObjectURL(blob);
  side.image.alt = `${side.title}: ${name}`;
  side.image.hidden = false;
  side.hint.hidden = true;
  side.view.classList.add("filled");
  side.file.classList.remove("wrong");
  side.file.textContent = `${name}, ${picture.raster.width}\u00a0×\u00a0${picture.raster.height}`;
  side.picture = picture;
  compare();
}

function sayWrong(side, text) {
  side.file.classList.add("wrong");
  side.file.textContent = side.picture === null ? text : `${text} The picture above stays.`;
}

async function film(side) {
  sides.forEach(stopFilming);
  try {
    const constraints = { video: { facingMode: "environment", width: { ideal: 1280 } } };
    side.video.srcObject = await navigator.mediaDevices.getUserMedia(constraints);
    await side.video.play();
  } catch {
    stopFilming(side);
    sayWrong(side, "The camera cannot be used: it is missing, busy, or not allowed.");
    return;
  }
  setFilming(side, true);
  side.filming[0].focus();
}

async function shoot(side) {
  const turn = ++side.turn;
  const raster = decodeFrame(side.video);
  stopFilming(side);
  const canvas = new OffscreenCanvas(raster.width, raster.height);
  const data = new ImageData(new Uint8ClampedArray(raster.pixels), raster.width);
  canvas.getContext("2d").putImageData(data, 0, 0);
  const blob = await canvas.convertToBlob();
  if (turn === side.turn) show(side, { raster, isJpeg: false, isExact: true }, blob, "camera");
  side.camera.focus();
}

function stopFilming(side) {
  side.video.srcObject?.getTracks().forEach((track) => track.stop());
  side.video.srcObject = null;
  setFilming(side, false);
}

function setFilming(side, on) {
  side.video.hidden = !on;
  side.image.hidden = on || side.picture === null;
  side.hint.hidden = on || side.picture !== null;
  side.filming.forEach((button) => { button.hidden = !on; });
  side.camera.hidden = on || navigator.mediaDevices?.getUserMedia === undefined;
}

// --- the answer ---------------------------------------------------------------------------------

async function compare() {
  const number = ++newest;
  if (model === null) return;
  const pictures = sides.map((side) => side.picture);
  if (pictures.includes(null)) {
    const missing = pictures[0] === null && pictures[1] === null ? "two pictures"
      : pictures[0] === null ? "the first picture" : "the second picture";
    say("waiting", `Ready: choose ${missing}.`);
    return;
  }
  say("busy", "Comparing …");
  await new Promise((done) => setTimeout(done, 30)); // The words appear before the work.
  try {
    const distance = await distanceOf(pictures);
    if (number === newest) showAnswer(distance, pictures);
  } catch (error) {
    if (number === newest) say("error", `The pictures cannot be compared: ${error.message}`);
  }
}

async function distanceOf(pictures) {
  const embeddings = [];
  for (const { raster, isJpeg } of pictures) {
    embeddings.push(await model.embed(networkInput(raster, model.description.picture, isJpeg)));
  }
  const distance = await model.distance(...embeddings);
  if (!Number.isFinite(distance)) throw new Error("the network gives no finite number");
  return distance;
}

function showAnswer(distance, pictures) {
  const { calibration } = model.description;
  setHidden({ status: true, reason: false, numbers: false });
  element("distance").textContent = rounded(distance);
  element("cautions").replaceChildren(...cautionsOf(pictures).map((text) =>
    Object.assign(document.createElement("li"), { textContent: text })));
  setHidden({ cautions: element("cautions").childElementCount === 0 });
  answer.dataset.distance = distance;
  if (calibration === null) {
    answer.dataset.state = "uncalibrated";
    setHidden({ verdict: true, scale: true });
    element("reason").textContent =
      "This model has no threshold, so there is no verdict. Lower distances are closer.";
    element("threshold").textContent = element("probability").textContent = "none";
    return;
  }
  const match = isMatch(distance, calibration);
  const chance = probability(distance, calibration);
  answer.dataset.state = match ? "same" : "different";
  if (chance !== null) answer.dataset.probability = chance;
  element("verdict").textContent = match ? "Same" : "Different";
  const far = percent(calibration.target_far);
  element("reason").textContent = match
    ? "The distance is at or below the threshold." : "The distance is above the threshold.";
  if (chance !== null && match !== chance >= 0.5) {
    element("reason").textContent += match
      ? ` Different is more probable, but the threshold accepts only ${far} of impostor pairs.`
      : ` The same is more probable, but a higher threshold could accept more than ${far}`
        + " of impostor pairs.";
  }
  element("threshold").textContent = rounded(calibration.threshold);
  element("probability").textContent = chance === null ? "none" : percent(chance);
  const end = Math.max(2 * calibration.threshold, 1.05 * distance) || 1;
  element("scale").style.setProperty("--limit", `${(100 * calibration.threshold) / end}%`);
  element("scale").style.setProperty("--mark", `${(100 * distance) / end}%`);
  setHidden({ verdict: false, scale: false });
}

function cautionsOf(pictures) {
  const { size } = model.description.picture;
  return sides.flatMap(({ title }, i) => {
    const { raster, isJpeg, isExact } = pictures[i];
    const cautions = [];
    if (isJpeg && draftFactor(raster, size) > 1) {
      cautions.push(`${title}: a large JPEG; the command's distance may differ by a few percent.`);
    }
    if (!isExact) {
      cautions.push(`${title}: this browser rounds the colours of transparent pictures.`);
    }
    return cautions;
  });
}

function say(state, text) {
  answer.dataset.state = state;
  delete answer.dataset.distance;
  delete answer.dataset.probability;
  setHidden({
    status: false, verdict: true, reason: true, scale: true, numbers: true, cautions: true,
  });
  element("status").textContent = text;
}

function setHidden(states) {
  for (const [id, hidden] of Object.entries(states)) element(id).hidden = hidden;
}

function rounded(value) {
  return value === 0 ? "0" : Number(value.toPrecision(4)).toString();
}

function percent(share) {
  const value = 100 * share;
  return `${value.toFixed(value > 99 || value < 1 ? 2 : 1)} %`;
}

// --- start --------------------------------------------------------------------------------------

/** Compare the two pictures of check.json, whose distance the command has written there. */
async function check() {
  const { pictures, distance } = await (await fetch("check.json")).json();
  const own = await distanceOf(await Promise.all(pictures.map(async (name) =>
    decodeFile(await (await fetch(name)).blob()))));
  const agrees = Math.abs(own - distance) <= AGREES * Math.max(1, distance);
  element("checked").dataset.distance = own;
  element("checked").textContent = agrees
    ? `Checked on this device: two pictures of the page are ${rounded(own)} apart, as they should be.`
    : `This browser changes pixels or rounds otherwise: two pictures of the page are ${rounded(own)}`
      + ` apart instead of ${rounded(distance)}. Distances and verdicts here may be wrong.`;
  if (!agrees) document.querySelector("details").open = true;
}

function describe({ calibration, fingerprint, twinlens, precision, model: { backbone } }) {
  element("about").textContent =
    `Model ${fingerprint} (${backbone}, ${precision}), made by twinlens ${twinlens}.`;
  element("meaning").textContent = calibration === null
    ? "The distance says how much the network tells the pictures apart; lower is closer."
    : `At the threshold, ${percent(calibration.target_far)} of the pairs that show different things`
      + " count as the same. The probability holds if same and different are equally likely"
      + " beforehand.";
}

async function start() {
  say("loading", "Loading the model …");
  try {
    model = await loadModel();
    describe(model.description);
    await check();
  } catch (error) {
    model = null;
    say("error", `The model cannot be loaded: ${error.message}`);
    return;
  }
  await compare();
}

start();
