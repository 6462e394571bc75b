"use strict";
// A video is sent once and asked many times. Text from outside becomes text nodes only.

const SHOWN = 5; // moments a sentence
const TRIES = 4; // of a request that is told to come later
const $ = (id) => document.getElementById(id);
const video = $("video");
let chosen = null; // the file
let sent = null; // a promise of what the server knows of it
let heads = []; // marks of the time at which the video is, one a sentence
let asked = 0; // of several questions only the last one is shown

const clock = (s) => {
  const tenths = Math.round(s * 10), minutes = Math.floor(tenths / 600);
  return `${minutes}:${((tenths - minutes * 600) / 10).toFixed(1).padStart(4, "0")}`;
};
const pause = (s) => new Promise((done) => setTimeout(done, 1000 * s));

function make(name, parent, options = {}) {
  const { text, ...attributes } = options;
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

// ---------------------------------------------------------------- the server

class Refused extends Error {
  constructor(code, message) { super(message); this.code = code; }
}

async function post(path, body, type) {
  for (let attempt = 1; ; attempt++) {
    const headers = { "Content-Type": type };
    if ($("token").value) headers.Authorization = `Bearer ${$("token").value}`;
    let answer, told;
    try {
      answer = await fetch(path, { method: "POST", headers, body });
      told = await answer.json();
    } catch {
      throw new Refused("gone", "The server does not answer.");
    }
    if (answer.ok) return told;
    const wait = Number(answer.headers.get("Retry-After"));
    if (wait && attempt < TRIES) { say(`The server is busy: again in ${wait} s.`); await pause(wait); continue; }
    if (answer.status === 401) { $("secret").hidden = false; $("token").focus(); }
    throw new Refused(told.error?.code, told.error?.message ?? `status ${answer.status}`);
  }
}

const send = (file) =>
  post("v1/videos", file, file.type.startsWith("video/") ? file.type : "application/octet-stream");

// ---------------------------------------------------------------- a video

function say(text) { $("state").textContent = text; }
function complain(text) { $("fault").textContent = text; }

function choose(file) {
  if (!file) return;
  chosen = file;
  complain("");
  $("answers").replaceChildren();
  heads = [];
  if (video.src) URL.revokeObjectURL(video.src);
  video.src = URL.createObjectURL(file);
  video.hidden = false;
  $("drop").classList.add("small");
  $("drop").querySelector("strong").textContent = file.name;
  $("drop").querySelector("span").textContent = "(choose or drop another one)";
  upload();
}

function upload() {
  const file = chosen;
  $("warnings").replaceChildren();
  say(`Sending and reading ${file.name} …`);
  sent = send(file);
  sent.then((known) => {
    if (file !== chosen) return;
    say(`${file.name}: ${clock(known.duration_s)}, ready for sentences.`);
    for (const line of known.warnings) make("li", $("warnings"), { text: line });
  }, (refused) => {
    if (file !== chosen) return;
    sent = null;
    say("");
    complain(refused.message);
  });
}

video.addEventListener("error", () => {
  if (!chosen) return;
  make("li", $("warnings"), { text: "This browser cannot play the file; its moments are found all the same." });
});

const drop = $("drop");
$("file").addEventListener("change", (event) => choose(event.target.files[0]));
for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files[0]);
  });

// ---------------------------------------------------------------- sentences

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  complain("");
  const sentences = $("sentences").value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!chosen) return complain("Choose a video first.");
  if (!sentences.length) return complain("Write a sentence first.");
  const own = ++asked;
  $("go").disabled = true;
  try {
    const answer = await ask(sentences);
    if (own === asked) show(answer);
  } catch (refused) {
    say("");
    complain(refused.message);
  } finally {
    $("go").disabled = false;
  }
});

$("sentences").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
});

async function ask(sentences, again = true) {
  if (!sent) upload();
  const known = await sent;
  say("Looking …");
  try {
    const body = JSON.stringify({ video: known.video, sentences });
    return await post("v1/ground", body, "application/json");
  } catch (refused) {
    if (refused.code !== "video_unknown" || !again) throw refused;
    upload(); // it expired
    return ask(sentences, false);
  }
}

// ---------------------------------------------------------------- answers

function show(answer) {
  const place = $("answers");
  place.replaceChildren();
  heads = [];
  say(`${answer.results.length} ${answer.results.length === 1 ? "sentence" : "sentences"} answered.`);
  for (const result of answer.results) showResult(place, result, answer);
  follow();
}

function showResult(place, result, { duration_s, clip_s }) {
  const article = make("article", place);
  make("h2", article, { text: result.query });
  if (result.unknown_words.length)
    make("p", article, { class: "note", text: `Not known, and left out: ${result.unknown_words.join(", ")}` });
  const best = result.moments.slice(0, SHOWN);
  showLine(article, result, best, duration_s, clip_s);
  const list = make("ol", article, { class: "moments" });
  for (const moment of best) {
    const from = clock(moment.start_s), to = clock(moment.end_s);
    const button = make("button", make("li", list), { type: "button", text: `${from} – ${to} ` });
    make("small", button, { text: moment.score.toFixed(2) });
    button.addEventListener("click", () => play(moment.start_s));
  }
}

function showLine(article, result, best, duration_s, clip_s) {
  const line = make("div", article, {
    class: "line", role: "slider", tabindex: "0", "aria-label": `Saliency of “${result.query}”, and its moments`,
    "aria-valuemin": "0", "aria-valuemax": String(duration_s),
  });
  for (const moment of best.toReversed?.() ?? [...best].reverse()) {
    const bar = make("div", line, { class: "bar" });
    bar.style.left = `${(100 * moment.start_s) / duration_s}%`;
    bar.style.width = `${(100 * (moment.end_s - moment.start_s)) / duration_s}%`;
    bar.style.opacity = String(0.1 + 0.5 * Math.max(0, Math.min(1, moment.score)));
  }
  curve(line, result.saliency, duration_s, clip_s);
  const head = make("div", line, { class: "head" });
  heads.push({ head, line, duration_s, told: (s) => {
    const clip = Math.min(result.saliency.length - 1, Math.floor(s / clip_s));
    return `${clock(s)}, saliency ${result.saliency[clip].toFixed(2)}`;
  } });
  line.addEventListener("click", (event) => {
    const box = line.getBoundingClientRect();
    play(((event.clientX - box.left) / box.width) * duration_s);
  });
  line.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -clip_s, ArrowRight: clip_s, Home: -Infinity, End: Infinity };
    if (event.key in steps) seek(Math.max(0, Math.min(duration_s, video.currentTime + steps[event.key])));
    else if (event.key === "Enter" || event.key === " ") video.paused ? play(video.currentTime) : video.pause();
    else return;
    event.preventDefault();
  });
  const scale = make("div", article, { class: "scale", "aria-hidden": "true" });
  for (const part of [0, 0.5, 1]) make("span", scale, { text: clock(part * duration_s) });
}

function curve(line, saliency, duration_s, clip_s) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg"), path = document.createElementNS(space, "polyline");
  svg.setAttribute("viewBox", "0 0 1000 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const low = Math.min(...saliency), span = Math.max(...saliency) - low || 1;
  const points = saliency.map((value, clip) => {
    const x = (1000 * Math.min(duration_s, (clip + 0.5) * clip_s)) / duration_s;
    return `${x.toFixed(1)},${(92 - (84 * (value - low)) / span).toFixed(1)}`;
  });
  path.setAttribute("points", points.join(" "));
  svg.append(path);
  line.append(svg);
}

// ---------------------------------------------------------------- time

function seek(s) { video.currentTime = s; follow(); }

function play(s) {
  seek(s);
  video.play().catch(() => {});
  video.scrollIntoView({ block: "nearest", behavior: "smooth" });
}

function follow() {
  for (const { head, line, duration_s, told } of heads) {
    const s = Math.min(duration_s, video.currentTime);
    head.style.left = `${(100 * s) / duration_s}%`;
    line.setAttribute("aria-valuenow", s.toFixed(1));
    line.setAttribute("aria-valuetext", told(s));
  }
}
for (const kind of ["timeupdate", "seeked"]) video.addEventListener(kind, follow);
