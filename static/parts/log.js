// What a job prints: the end of its log, read on while the section is open and the job runs.

import { log } from "../api.js";
import { h, setText } from "../dom.js";
import { isLive } from "../words.js";

const EVERY_MS = 2000;
const KEPT = 64 * 1024; // characters: more is not read in a page

// → { element, update(job), stop() }
export function logTail(job, { query, set }) {
  let at = null; // { attempt, offset } behind what is shown
  let timer = null;
  let isOver = false;
  const text = h("pre", { class: "log", tabindex: "0", role: "region", "aria-label": "Log" });
  const follow = h("input", { type: "checkbox", id: "log-follow", checked: true, onchange: toEnd });
  const state = h("span", { class: "note" });
  const element = h(
    "details", { class: "card", id: "log", open: query.get("log-open") === "1", ontoggle: toggled }, h("summary", {}, h("h2", {}, "Log")),
    h("div", { class: "toolbar" }, h("label", { for: "log-follow" }, follow, " Follow"), state), text,
  );
  return { element, update, stop };

  function update(now) {
    const wasLive = isLive(job);
    job = now;
    if (element.open && (isLive(job) || wasLive)) start();
  }

  function stop() {
    isOver = true;
    clearTimeout(timer);
  }

  function toggled() {
    set({ "log-open": element.open && "1" });
    clearTimeout(timer);
    timer = null;
    if (element.open) start();
  }

  function start() {
    timer ??= setTimeout(read);
  }

  async function read() {
    try {
      take(await log(job.job_id, at ? { offset: at.offset } : {}));
    } catch (error) {
      setText(state, error.message);
    }
    timer = null;
    if (!isOver && element.open && isLive(job)) timer = setTimeout(read, EVERY_MS);
  }

  // Without an attempt in the answer's headers the whole tail came, and takes the old one's place.
  function take(piece) {
    const goesOn = at && piece.attempt === at.attempt;
    if (at && piece.attempt !== at.attempt && piece.attempt > 0) {
      at = null; // another attempt's log: its end is asked for next
      return setText(text, "");
    }
    const whole = (goesOn ? text.textContent + piece.text : piece.text).slice(-KEPT);
    at = piece.attempt > 0 ? { attempt: piece.attempt, offset: piece.offset } : null;
    setText(text, whole);
    const more = isLive(job) ? "It has printed nothing yet." : "It printed nothing.";
    setText(state, whole ? (piece.attempt > 1 ? `of attempt ${piece.attempt}` : "") : more);
    if (goesOn ? piece.text : true) toEnd();
  }

  function toEnd() {
    if (follow.checked) text.scrollTop = text.scrollHeight;
  }
}
