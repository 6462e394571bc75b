"use strict";
// A video is sent once and asked many times. Text from outside becomes text nodes only.

const SHOWN = 5; // moments a sentence
const FAINT = 0.1; // of the best score: moments below it are not shown
const WEAK_SCORE = 0.2; // below it a best score says that nothing stands out: WEAK_SCORE of pages/panels.py
const PRESENT = 0.5; // a lower presence says that nothing was found: PRESENT of pages/panels.py
const TRIES = 4; // of a request that is told to come later
const $ = (id) => document.getElementById(id);
const video = $("video");
let chosen = null; // {name, file} of this device or {name, path} of the server
let sent = null; // a promise of what the server knows of it
let sending = null; // the request that carries it
let heads = []; // marks of the time at which the video is, one a sentence
let asked = 0; // of several questions only the last one is shown
let folder = ""; // of the server, whose names are listed
let listed = ""; // what was asked for last

const clock = (s) => {
  const tenths = Math.round(s * 10), minutes = Math.floor(tenths / 600), hours = Math.floor(minutes / 60);
  const seconds = ((tenths - minutes * 600) / 10).toFixed(1).padStart(4, "0");
  return hours ? `${hours}:${String(minutes % 60).padStart(2, "0")}:${seconds}` : `${minutes}:${seconds}`;
};
const score_of = (value) => (value < 0.005 ? "< 0.01" : value.toFixed(2));
const fixed = (value) => value.toFixed(2).replace(/^-(0\.00)$/, "$1").replace("-", "\u2212");
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

function request(method, path, { body = null, type = "", answer = "json", began = () => {}, onSent = () => {} }) {
  return new Promise((done, failed) => {
    const call = new XMLHttpRequest(); // unlike fetch it says how much has been sent
    call.open(method, path);
    if (type) call.setRequestHeader("Content-Type", type);
    if ($("token").value) call.setRequestHeader("Authorization", `Bearer ${$("token").value}`);
    call.responseType = answer;
    call.upload.onprogress = (event) => onSent(event.loaded / event.total);
    call.onload = () => done(call);
    call.onabort = () => failed(new Refused("aborted", ""));
    call.onerror = () => failed(new Refused("gone",
      "The connection to the server broke: it has ended, or takes no file of this size."));
    began(call);
    call.send(body);
  });
}

async function ask_server(method, path, options = {}) {
  for (let attempt = 1; ; attempt++) {
    const call = await request(method, path, options);
    if (call.status < 300) return call.response;
    const wait = Number(call.getResponseHeader("Retry-After"));
    if (wait && attempt < TRIES) {
      options.onBusy?.(`The server is busy: again in ${wait} s.`);
      await pause(wait);
      continue;
    }
    if (call.status === 401) {
      $("secret").hidden = false;
      const given = $("token").value !== "";
      throw new Refused("unauthorized", given ? "This is not the server's token." : "This server asks for a token.");
    }
    const error = call.response?.error;
    throw new Refused(error?.code, error?.message ?? `The server answered with status ${call.status}.`);
  }
}

// ---------------------------------------------------------------- a video

function say(text) { $("state").textContent = text; }
function tell(text) { $("told").textContent = text; }
function complain(text) { $("fault").textContent = text; if (text) tell(""); }

function choose(choice) {
  sending?.abort();
  chosen = choice;
  complain("");
  tell("");
  $("answers").replaceChildren();
  heads = [];
  for (const button of $("names").querySelectorAll("button"))
    button.toggleAttribute("aria-current", button.dataset.path === choice.path);
  $("drop").classList.add("small");
  $("drop").querySelector("strong").textContent = choice.name;
  $("drop").querySelector("span").textContent = "(choose or drop another one)";
  if ($("shelf").contains(document.activeElement)) $("shelf").querySelector("summary").focus();
  $("shelf").open = false; // the video takes its place
  video.hidden = false;
  show_video(choice);
  upload();
}

async function show_video(choice) {
  if (video.src.startsWith("blob:")) URL.revokeObjectURL(video.src);
  const address = `v1/file?path=${encodeURIComponent(choice.path)}`;
  if (choice.file) video.src = URL.createObjectURL(choice.file);
  else if (!$("token").value) video.src = address;
  else { // a player sends no token
    video.removeAttribute("src");
    const bytes = await ask_server("GET", address, { answer: "blob" }).catch(() => null);
    if (choice === chosen && bytes) video.src = URL.createObjectURL(bytes);
  }
}

function upload() {
  const choice = chosen, { name, file, path } = choice;
  const onSent = (part) => {
    if (choice !== chosen) return;
    $("progress").hidden = false;
    if (part < 1) $("progress").value = part;
    else $("progress").removeAttribute("value"); // so long as the server reads it
    say(part < 1 ? `Sending ${name}: ${Math.floor(100 * part)} %` : `Reading ${name} …`);
  };
  const onBusy = (text) => { if (choice === chosen) say(text); };
  const began = (call) => { sending = call; };
  const bytes = file?.type.startsWith("video/") ? file.type : "application/octet-stream";
  const what = file ? { body: file, type: bytes } : { body: JSON.stringify({ path }), type: "application/json" };
  $("warnings").hidden = true;
  $("warnings").replaceChildren();
  onSent(file ? 0 : 1);
  const mine = sent = ask_server("POST", "v1/videos", { ...what, began, onSent, onBusy });
  mine.then((known) => {
    if (mine !== sent) return;
    $("progress").hidden = true;
    say(`${name}: ${clock(known.duration_s)}, ready for sentences.`);
    known.warnings.forEach(warn);
  }, (refused) => {
    if (mine !== sent) return;
    sent = null;
    $("progress").hidden = true;
    say("");
    complain(refused.message);
    if (refused.code === "unauthorized") $("token").focus();
  });
}

function warn(text) {
  $("warnings").hidden = false;
  make("li", $("warnings"), { text });
}

video.addEventListener("error", () => {
  if (!chosen || !video.getAttribute("src")) return;
  warn("This browser cannot play the file; its moments are found all the same.");
});

const drop = $("drop");
const take = (file) => { if (file) choose({ name: file.name, file }); };
$("file").addEventListener("change", (event) => take(event.target.files[0]));
for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files[0]);
  });

// ---------------------------------------------------------------- videos of the server

async function list(after = "") {
  const part = $("find").value, asked_for = String(new URLSearchParams({ folder, after, part }));
  let found;
  listed = asked_for;
  try {
    found = await ask_server("GET", `v1/files?${asked_for}`);
  } catch (refused) {
    if (refused.code !== "unauthorized" || $("token").value) complain(refused.message);
    return;
  }
  if ($("secret").contains(document.activeElement)) $("file").focus();
  $("secret").hidden = true;
  if (listed !== asked_for) return; // another list was asked for since
  if (!after) $("names").replaceChildren();
  for (const name of found.names) {
    const path = folder + name, is_folder = name.endsWith("/");
    const button = make("button", make("li", $("names")), { type: "button", "data-path": path, text: name });
    if (is_folder) button.classList.add("folder");
    button.toggleAttribute("aria-current", path === chosen?.path);
    button.addEventListener("click", () => (is_folder ? enter(path) : choose({ name, path })));
  }
  if (!$("names").children.length) make("li", $("names"), { class: "none", text: "No video here." });
  if (found.names.length || folder) $("shelf").hidden = false; // it stays hidden where the server has none
  $("place").hidden = !folder;
  $("place").querySelector("span").textContent = folder;
  $("more").hidden = !found.more;
  $("more").onclick = () => list(found.names.at(-1));
}

async function enter(path) {
  folder = path;
  $("find").value = "";
  await list();
  ($("names").querySelector("button") ?? $("up")).focus();
}

$("find").value = new URLSearchParams(location.search).get("find") ?? "";
$("find").addEventListener("input", () => list());
$("up").addEventListener("click", () => enter(folder.replace(/[^/]+\/$/, "")));
$("secret").addEventListener("submit", (event) => {
  event.preventDefault();
  complain("");
  list();
  if (chosen && !sent) choose(chosen);
});
list();

// ---------------------------------------------------------------- sentences

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  complain("");
  const sentences = $("sentences").value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!chosen) return complain("Choose a video first.");
  if (!sentences.length) return complain("Write a sentence first.");
  const own = ++asked, choice = chosen;
  $("go").disabled = true;
  try {
    const answer = await ask(sentences);
    if (own === asked && choice === chosen) show(answer);
  } catch (refused) {
    if (choice === chosen) complain(refused.message);
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
  tell("Looking …");
  try {
    const body = JSON.stringify({ video: known.video, sentences });
    return await ask_server("POST", "v1/ground", { body, type: "application/json", onBusy: tell });
  } catch (refused) {
    if (refused.code !== "video_unknown" || !again) throw refused;
    upload(); // it expired
    return ask(sentences, false);
  }
}

// ---------------------------------------------------------------- answers

function show(answer) {
  const place = $("answers"), count = answer.results.length;
  place.replaceChildren();
  heads = [];
  tell(`${count} ${count === 1 ? "sentence" : "sentences"} answered.`);
  make("p", place, {
    class: "note",
    text: "Bars are moments, the stronger the surer; the curve is how well each part fits. Click to play from there.",
  });
  for (const result of answer.results) showResult(place, result, answer);
  follow();
}

function showResult(place, result, { duration_s, clip_s }) {
  const article = make("article", place);
  make("h2", article, { text: result.query });
  if (result.unknown_words.length)
    make("p", article, { class: "note", text: `Not known, and left out: ${result.unknown_words.join(", ")}` });
  const least = FAINT * (result.moments[0]?.score ?? 0);
  const best = result.moments.slice(0, SHOWN).filter((moment) => moment.score >= least);
  const absent = result.presence !== null && (result.presence < PRESENT || !best.length);
  if (result.presence !== null) {
    const presence = `presence ${score_of(result.presence)}`;
    make("p", article, { class: "note presence", text: absent ? `Nothing found (${presence}).` : presence });
  } else if (!best.length || best[0].score < WEAK_SCORE)
    make("p", article, {
      class: "note", text: "Nothing stands out: the video may not show this. Take the moments as guesses.",
    });
  showLine(article, result, absent ? [] : best, duration_s, clip_s);
  if (!best.length) return;
  let place_of_list = article;
  if (absent) {
    place_of_list = make("details", article);
    make("summary", place_of_list, { text: "Guesses" });
  }
  const list = make("ol", place_of_list, { class: "moments", "aria-label": "Moments, the surest first" });
  for (const moment of best) {
    const from = clock(moment.start_s), to = clock(moment.end_s), score = score_of(moment.score);
    const button = make("button", make("li", list), { type: "button", text: `${from} – ${to} ` });
    button.setAttribute("aria-label", `Play ${from} to ${to}, score ${score}`);
    make("small", button, { text: score });
    button.addEventListener("click", () => play(moment.start_s));
  }
}

function showLine(article, result, best, duration_s, clip_s) {
  const line = make("div", article, {
    class: "line", role: "slider", tabindex: "0", "aria-label": `Saliency of “${result.query}”, and its moments`,
    "aria-valuemin": "0", "aria-valuemax": String(duration_s),
  });
  for (const moment of [...best].reverse()) {
    const bar = make("div", line, { class: "bar" });
    bar.style.left = `${(100 * moment.start_s) / duration_s}%`;
    bar.style.width = `${(100 * (moment.end_s - moment.start_s)) / duration_s}%`;
    bar.style.opacity = String(0.1 + 0.5 * Math.max(0, Math.min(1, moment.score)));
  }
  curve(line, result.saliency, duration_s, clip_s);
  const head = make("div", line, { class: "head" });
  heads.push({ head, line, duration_s, told: (s) => {
    const clip = Math.min(result.saliency.length - 1, Math.floor(s / clip_s));
    return `${clock(s)}, saliency ${fixed(result.saliency[clip])}`;
  } });
  const under = (event) => {
    const box = line.getBoundingClientRect();
    return Math.max(0, Math.min(duration_s, ((event.clientX - box.left) / box.width) * duration_s));
  };
  line.addEventListener("click", (event) => play(under(event)));
  line.addEventListener("pointermove", (event) => { line.title = clock(under(event)); });
  line.addEventListener("keydown", (event) => {
    const steps = {
      ArrowLeft: -clip_s, ArrowDown: -clip_s, ArrowRight: clip_s, ArrowUp: clip_s, Home: -Infinity, End: Infinity,
    };
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
