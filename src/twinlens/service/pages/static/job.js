// Follows a job: progress in words, the log, and the curve of a training. Reloads at its end.

const root = document.getElementById("job");
const texts = JSON.parse(root.dataset.texts);
const part = (name) => root.querySelector(`[data-${name}]`);
const say = (key, values = {}) => texts[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
const budget = Number(root.dataset.budget) || null;
const started = root.dataset.started ? Date.parse(root.dataset.started) : Date.now();
const SVG = "http://www.w3.org/2000/svg";
const MOST_LINES = 200;
const TELL_EVERY = 20_000; // milliseconds, between two messages to screen readers

const time = (seconds) => seconds < 90
  ? say("seconds", { count: Math.round(seconds) }) : say("minutes", { count: Math.round(seconds / 60) });
const taskName = (task) => texts[`task_${task.replaceAll(" ", "_")}`] ?? task[0].toUpperCase() + task.slice(1);

function clock() {
  const passed = Math.max(0, (Date.now() - started) / 1000);
  const key = budget === null ? "passed" : passed > 1.2 * budget ? "beyond_budget" : "of_budget";
  part("time").textContent = say(key, { time: time(passed), budget: time(budget ?? 0) });
}
setInterval(clock, 1000);

let told = 0;
let next = null;
const NEXT_AFTER = 3000; // milliseconds without news of the next step

function progress({ task, done, total, seconds_left: left }) {
  const bar = part("bar");
  if (part("said").textContent === texts.starting) part("said").textContent = "";
  if (total) [bar.max, bar.value] = [total, done];
  clearTimeout(next);
  if (done >= total) {
    next = setTimeout(() => {
      bar.removeAttribute("value");
      part("task").textContent = say("next");
    }, NEXT_AFTER);
  }
  const name = taskName(task);
  const more = left === null || left === undefined || done >= total ? "" : ` · ${say("left", { time: time(left) })}`;
  part("task").textContent = say("progress", { task: name, done: done.toLocaleString(), total: total.toLocaleString() }) + more;
  if (Date.now() - told > TELL_EVERY) {
    told = Date.now();
    part("status").textContent = say("now", { task: name, percent: Math.floor((100 * done) / Math.max(1, total)) });
  }
}

// Lines of the log that tell people what is being done; the others stand in the log only.
let tried = 0;

function inWords(text) {
  if (text.startsWith("candidate: ")) return say("trying", { count: tried += 1 });
  if (text.includes(" settings chosen; ")) return say("choosing");
  return text.startsWith("chosen, ") ? say("chosen") : null;
}

function log({ text }) {
  const line = document.createElement("li");
  line.textContent = text;
  part("log").append(line);
  const plain = inWords(text);
  if (plain) part("said").textContent = plain;
  while (part("log").children.length > MOST_LINES) part("log").firstChild.remove();
}

// --- the curve ---

const points = [];
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [640, 260, 56, 12, 12, 40];

function draw(name, attributes, text = "") {
  const one = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
  one.textContent = text;
  part("curve").append(one);
}

// Errors of a network while it learns, and of candidates that need no training.
function curve(metric, at) {
  const seconds = (Date.parse(at) - started) / 1000;
  if (!Number.isFinite(metric) || !Number.isFinite(seconds)) return;
  points.push({ metric, seconds });
  points.sort((a, b) => a.seconds - b.seconds);
  const best = points.reduce((a, b) => (b.metric < a.metric ? b : a));
  part("best").textContent = say("best", { percent: (100 * best.metric).toFixed(1), time: time(best.seconds) });
  if (points.length < 2) return;
  part("figure").hidden = false;
  const title = part("curve").querySelector("title");
  part("curve").replaceChildren(title);
  const top = step(Math.max(...points.map((one) => 100 * one.metric)) * 1.05);
  const end = Math.max(points.at(-1).seconds, 1);
  const x = (one) => LEFT + ((WIDTH - LEFT - RIGHT) * one) / end;
  const y = (one) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * one) / top.most;
  for (let value = 0; value <= top.most + 1e-9; value += top.each) {
    draw("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "grid" });
    draw("text", { x: LEFT - 8, y: y(value) + 4, class: "end" }, `${+value.toFixed(2)} %`);
  }
  const times = step(end / 60);
  for (let value = 0; value <= end / 60 + 1e-9; value += times.each) {
    draw("text", { x: x(60 * value), y: HEIGHT - BOTTOM + 18, class: "middle" }, String(+value.toFixed(2)));
  }
  draw("text", { x: WIDTH - RIGHT, y: HEIGHT - 6, class: "end" }, say("axis_time"));
  const line = [];
  for (const one of points) {
    draw("circle", { cx: x(one.seconds), cy: y(100 * one.metric), r: 3, class: "dot" });
    const least = Math.min(one.metric, line.at(-1)?.metric ?? Infinity);
    if (line.length) line.push({ seconds: one.seconds, metric: line.at(-1).metric });
    line.push({ seconds: one.seconds, metric: least });
  }
  draw("polyline", { points: line.map((one) => `${x(one.seconds)},${y(100 * one.metric)}`).join(" "), class: "line" });
  draw("circle", { cx: x(best.seconds), cy: y(100 * best.metric), r: 5, class: "best" });
}

// Round steps of an axis, three to six of them.
function step(most) {
  const power = 10 ** Math.floor(Math.log10(most / 3));
  const each = [1, 2, 5, 10].map((one) => one * power).find((one) => most / one <= 6);
  return { each, most: each * Math.ceil(most / each) };
}

// --- events ---

const source = new EventSource(root.dataset.events);
const on = (type, use) => source.addEventListener(type, (event) => use(JSON.parse(event.data)));
on("progress", progress);
on("log", log);
on("curve", ({ metric, time: at }) => curve(metric, at));
on("candidate", ({ eer, time: at }) => curve(eer, at));
on("state", ({ state }) => {
  part("state").textContent = say(`state_${state}`);
  part("said").textContent = state === "running" ? say("starting") : "";
  part("status").textContent = say(`state_${state}`);
});
on("end", () => { source.close(); location.reload(); });
source.addEventListener("error", () => { part("status").textContent = say("lost"); });
