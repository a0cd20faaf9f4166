// What a job prints: the end of its log, read on while the section is open and the job runs.

import { log } from "../api.js";
import { h, setText } from "../dom.js";
import { isLive } from "../words.js";

const EVERY_MS = 2000;
const KEPT = 64 * 1024; // characters: more is not read in a page

// → { element, update(job), stop() }
export function logTail(job, { query, set }) {
  let at = null; // { attempt, offset } behind what is shown
  let timer;
  let isReading = false;
  let isAsked = false; // for another read once the present one is over
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
    const hasEnded = isLive(job) && !isLive(now);
    job = now;
    if (element.open && hasEnded) read(); // its last lines
  }

  function stop() {
    isOver = true;
    clearTimeout(timer);
  }

  function toggled() {
    set({ "log-open": element.open && "1" });
    if (element.open) read();
    else clearTimeout(timer);
  }

  // One read at a time: two from the same place would show its lines twice.
  async function read() {
    clearTimeout(timer);
    isAsked = true;
    if (isReading) return;
    isReading = true;
    while (isAsked && !isOver) {
      isAsked = false;
      await log(job.job_id, at ? { offset: at.offset } : {}).then(take, (error) => setText(state, error.message));
    }
    isReading = false;
    if (!isOver && element.open && isLive(job)) timer = setTimeout(read, EVERY_MS);
  }

  // Without an attempt in the answer's headers the whole tail came, and takes the old one's place.
  function take(piece) {
    const goesOn = at && piece.attempt === at.attempt;
    if (at && !goesOn && piece.attempt > 0) {
      at = null; // another attempt's log, from an offset of the one before: its end is asked for instead
      isAsked = true;
      return;
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
