
// Seeks and plays, and reads out the time and the saliency under a pointer, a finger or the keyboard's focus.
// Reading the page needs none of it. What a user wrote enters by textContent only.
for (const section of document.querySelectorAll(".video")) {
  const duration = Number(section.dataset.duration);
  const player = section.querySelector("video");
  for (const axis of section.querySelectorAll(".axis")) axis.append(document.createElement("output"));

  const clock = (at) => {
    if (duration < 180) return at.toFixed(1) + " s";
    const tenths = Math.round(10 * at);
    const minutes = Math.floor(tenths / 600);
    const seconds = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
    if (minutes < 60) return `${minutes}:${seconds}`;
    return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${seconds}`;
  };
  let byKeys = false; // what the keyboard's focus reads out goes with it, what a pointer does not
  const readOut = (at, keys = false) => {
    byKeys = keys;
    section.classList.toggle("cursor", at !== null);
    if (at === null) return;
    section.style.setProperty("--at", at / duration);
    for (const out of section.querySelectorAll("output")) {
      const curve = out.closest(".rows").querySelector("[data-values]");
      const values = curve ? curve.dataset.values.split(" ") : [];
      const value = values[Math.floor(at / Number(curve?.dataset.clip) + 1e-6)];
      const text = value && Number(value).toFixed(2).replace(/^-(0\.00)$/, "$1").replace("-", "\u2212");
      out.textContent = clock(at) + (text ? ", saliency " + text : "");
    }
  };
  const play = (at) => {
    player.currentTime = at;
    player.play().catch(() => {});
  };

  const follow = (event) => {
    const box = section.querySelector(".axis")?.getBoundingClientRect();
    if (!box) return;
    const at = (event.clientX - box.left) / box.width;
    readOut(at >= 0 && at <= 1 ? at * duration : null);
  };
  section.addEventListener("pointermove", follow);
  section.addEventListener("pointerdown", follow);
  section.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") readOut(null); // a finger that is lifted leaves its read-out
  });

  for (const curve of section.querySelectorAll("[data-values]")) {
    const plot = curve.parentElement;
    const step = Number(curve.dataset.clip);
    let at = 0;
    plot.tabIndex = 0;
    plot.setAttribute("role", "slider");
    plot.setAttribute("aria-label", "saliency by time" + (player ? "; Enter plays from there" : ""));
    plot.setAttribute("aria-valuemin", "0");
    plot.setAttribute("aria-valuemax", String(duration));
    const move = (to) => {
      at = Math.min(Math.max(to, 0), duration - 1e-3);
      readOut(at, true);
      plot.setAttribute("aria-valuenow", at.toFixed(1));
      plot.setAttribute("aria-valuetext", plot.closest(".rows").querySelector("output").textContent);
    };
    plot.addEventListener("focus", () => plot.matches(":focus-visible") && move(at));
    plot.addEventListener("blur", () => byKeys && readOut(null));
    plot.addEventListener("keydown", (event) => {
      const moves = {
        ArrowLeft: at - step, ArrowDown: at - step, ArrowRight: at + step, ArrowUp: at + step,
        PageDown: at - 10 * step, PageUp: at + 10 * step, Home: 0, End: duration,
      };
      if (event.key in moves) move(moves[event.key]);
      else if ((event.key === "Enter" || event.key === " ") && player && !player.error) play(at);
      else return;
      event.preventDefault();
    });
  }

  if (!player) continue;
  for (const link of section.querySelectorAll("a[data-start]")) {
    const at = Number(link.dataset.start);
    link.addEventListener("click", (event) => {
      // A file that this browser cannot play, and a click for a new tab: the link itself, which needs no script.
      if (player.error || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      play(at);
    });
    link.addEventListener("keydown", (event) => {
      if (event.key !== " ") return;
      event.preventDefault();
      link.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
    });
    link.addEventListener("focus", () => link.matches(":focus-visible") && readOut(at, true));
    link.addEventListener("blur", () => byKeys && readOut(null));
  }
  const failed = () => {
    section.querySelector(".unplayable").hidden = false;
  };
  if (player.error) failed();
  player.addEventListener("error", failed);
  player.addEventListener("timeupdate", () => {
    section.classList.add("playing");
    section.style.setProperty("--now", Math.min(player.currentTime / duration, 1));
  });
}
