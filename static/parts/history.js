// Where a job's time went: phases as a bar over time, with marks where an attempt was interrupted.

import { h, replace, svg } from "../dom.js";
import { duration, moment } from "../format.js";

export const TYPES = [
  "job.submitted", "job.started", "job.phase_entered", "job.interrupted", "job.paused", "job.resume_requested", "training.resumed",
  "job.completed", "job.failed", "job.cancelled",
];
const TONES = { // of the phases of all kinds; those of one job differ
  training: 0, converting: 0, checking: 0, generating: 0, writing: 2, saving: 2, evaluating: 1, reading: 1, loading: 3, paused: 4, starting: 6,
};
const REDRAW_MS = 1000;
const THIN = 1 / 500; // of the whole: a phase shorter than this is drawn with the one before it

// → { element, load(events), hear(event), stop() }
export function history() {
  let events = [];
  const bar = svg("svg", { class: "phases", width: "100%", height: 26, role: "img" });
  const legend = h("ul", { class: "phase-times" });
  const marks = h("ul", { class: "note breaks" });
  const element = h("section", { class: "card", id: "history" }, h("h2", {}, "Time"), bar, legend, marks);
  const timer = setInterval(() => isOpen() && draw(), REDRAW_MS);
  return { element, load, hear, stop: () => clearInterval(timer) };

  function load(found) {
    events = found.filter(({ type }) => TYPES.includes(type));
    draw();
  }

  function hear(event) {
    if (!TYPES.includes(event.type) || events.some((known) => known.at === event.at && known.type === event.type)) return;
    events.push(event);
    draw();
  }

  function isOpen() {
    return events.length > 0 && !isEnd(events.at(-1));
  }

  function draw() {
    const pieces = piecesOf(events, Date.now());
    if (pieces.length === 0) return;
    const begin = pieces[0].from;
    const whole = Math.max(1, pieces.at(-1).to - begin);
    const place = (time) => `${((100 * (time - begin)) / whole).toFixed(3)}%`;
    const drawn = merged(pieces, whole * THIN);
    const isDrawn = new Set(drawn.map(({ phase }) => phase));
    const times = new Map();
    for (const { phase, from, to } of pieces) times.set(phase, (times.get(phase) ?? 0) + (to - from) / 1000);
    const breaks = events.filter(({ type }) => type === "job.interrupted");
    bar.setAttribute("aria-label", [...times].map(([phase, seconds]) => `${phase} ${duration(seconds)}`).join(", "));
    replace(
      bar,
      drawn.map(({ phase, from, to }) => svg("rect", { x: place(from), width: place(begin + to - from), y: 4, height: 18, style: { fill: colourOf(phase) } }, svg("title", {}, `${phase} ${duration((to - from) / 1000)}`))),
      breaks.map(({ at, cause }) => svg("line", { x1: place(new Date(at)), x2: place(new Date(at)), y1: 0, y2: 26 }, svg("title", {}, `interrupted: ${cause}`))),
    );
    replace(legend, [...times].filter(([phase]) => isDrawn.has(phase)).map(([phase, seconds]) => h("li", {}, h("span", { class: "swatch", "aria-hidden": "true", style: { color: colourOf(phase) } }), `${phase} `, h("b", {}, duration(seconds)))));
    replace(marks, breaks.map(({ at, attempt, cause }) => h("li", {}, `Attempt ${attempt} was interrupted ${moment(at)}: ${cause}.${resumedAfter(events, at)}`)));
  }
}

// Phases one after the other, each until the next begins; waiting and paused are phases too.
function piecesOf(events, now) {
  const pieces = [];
  const enter = (phase, time) => {
    const last = pieces.at(-1);
    if (last) last.to = time;
    if (phase && last?.phase !== phase) pieces.push({ phase, from: time, to: now });
    else if (phase) last.to = now;
  };
  for (const event of events) {
    const time = Number(new Date(event.at));
    if (event.type === "job.phase_entered") enter(event.phase, time);
    else if (event.type === "job.started") enter("starting", time);
    else if (event.type === "job.paused") enter("paused", time);
    else if (isEnd(event)) enter(null, time);
    else if (event.type !== "training.resumed") enter("waiting", time);
  }
  return pieces;
}

function merged(pieces, least) {
  const drawn = [];
  for (const piece of pieces) {
    const last = drawn.at(-1);
    if (last && (piece.to - piece.from < least || last.phase === piece.phase)) last.to = piece.to;
    else drawn.push({ ...piece });
  }
  return drawn;
}

function resumedAfter(events, at) {
  const next = events.find((event) => event.type === "training.resumed" && event.at > at);
  if (!next) return "";
  return next.step ? ` It went on from the checkpoint of step ${next.step}.` : " It began anew.";
}

function isEnd({ type }) {
  return type === "job.completed" || type === "job.failed" || type === "job.cancelled";
}

function colourOf(phase) {
  if (phase === "waiting") return "var(--line)";
  return `var(--series-${TONES[phase] ?? 7})`;
}
