// From a SAM2 export to a split dataset: upload, then three jobs one after the other, shown as one list of steps.
//
// The address holds the flow (?upload=…&convert=…&validate=…&split=…, and changed options by their names), so a reload
// goes on where it was. `next` is told nothing: it looks at what there is and does what is missing.

import * as api from "../api.js";
import { h, replace, setText } from "../dom.js";
import { number, plural } from "../format.js";
import { lookups } from "../gather.js";
import { attempt, say } from "../notices.js";
import { badge, isLive, progressBar, progressed, saying } from "../words.js";
import { freeName, optionsOf, SPLIT_FIELDS, sumsToOne } from "./data-options.js";
import { datasetAddress, findingsList, nameOfData } from "./dataset-parts.js";
import { dropZone, refusalOf, upload } from "./upload.js";

const STEPS = [
  { kind: "convert", title: "Convert", about: "Frames and masks become rows that a model can learn from.", only: ["output_dir", "task", "target_format", "mask_order", "keep_empty_frames"] },
  { kind: "validate", title: "Validate", about: "Every row is checked: pictures, masks, boxes, labels, duplicates.", only: ["level"] },
  { kind: "split", title: "Split", about: "Rows to learn from, to judge by, and to keep for the end.", only: SPLIT_FIELDS },
];
const KINDS = STEPS.map(({ kind }) => kind);
export const HEARD = [
  "job.submitted", "job.waiting", "job.placed", "job.started", "job.phase_entered", "job.progressed", "job.interrupted", "job.cancel_requested",
  "job.completed", "job.failed", "job.cancelled",
];

// → { element, load, hear, stop }. `taken` tells the names of datasets there are.
export function prepare({ query, set, taken }) {
  const forms = {}; // kind → { form, element }
  const jobs = {}; // kind → the job, once it is begun
  const steps = {}; // kind, or "upload" → its place in the list
  const refused = {}; // kind → why the service did not take it
  let sending = null; // the upload under way
  let early = null; // a file that was chosen before the options were here
  let isMoving = false;
  const look = lookups(take, forget);

  const zone = dropZone(send);
  const wrong = h("p", { class: "callout", data: { tone: "bad" }, hidden: true });
  const list = h("ol", { class: "steps", tabindex: -1 }); // takes the focus of a button that goes away
  const begin = h("button", { type: "button", class: "primary", onclick: onBegin }, "Prepare");
  const over = h("button", { type: "button", class: "quiet", onclick: startOver }, "Start over with another file");
  const end = h("div");
  const foot = h("div", { class: "actions" }, begin, over);
  const element = h("section", { class: "card prepare", "aria-labelledby": "prepare-title" }, h("h2", { id: "prepare-title" }, "Prepare a SAM2 export"), zone.element, wrong, list, end, foot);

  for (const { kind, title } of [{ kind: "upload", title: "Upload" }, ...STEPS]) {
    steps[kind] = h("li", { data: { step: kind } }, h("h3", {}, title), h("div", { class: "status" }), h("div", { class: "body" }));
    list.append(steps[kind]);
  }

  const onUnload = (event) => sending && event.preventDefault();
  addEventListener("beforeunload", onUnload);
  draw();

  return { element, load, hear, stop };

  function stop() {
    removeEventListener("beforeunload", onUnload);
    zone.stop();
    sending?.cancel();
  }

  // What the address says of the flow; begun once, it goes on by itself.
  async function load() {
    for (const { kind, only } of STEPS) {
      forms[kind] ??= await optionsOf(kind, only, { query, onInput: () => onOption(kind) });
      if (query.get(kind)) await look(query.get(kind));
    }
    draw();
    if (query.get("convert")) next();
    else if (early) send(early);
  }

  function stepOf(id) {
    return KINDS.find((kind) => query.get(kind) === id);
  }

  function take(job) {
    const kind = stepOf(job.job_id);
    if (!kind) return; // started over since
    delete refused[kind];
    jobs[kind] = job;
  }

  function forget(id) {
    const kind = stepOf(id);
    if (kind) refused[kind] = "The job of this step was removed.";
  }

  async function hear(event) {
    const kind = stepOf(event.job_id);
    if (!kind) return;
    if (event.type === "job.progressed" && jobs[kind]) {
      progressed(jobs[kind], event);
      return drawStep(kind);
    }
    await look.quietly(event.job_id);
    if (stepOf(event.job_id) !== kind) return;
    drawStep(kind);
    if (jobs[kind]?.status === "failed") say(jobs[kind].failure_detail, "bad");
    else if (kind === "split" && isPassed(kind)) say(`${nameOfSplit()} can be trained on.`);
    next();
  }

  // -- upload

  async function send(file) {
    if (sending || query.get("convert")) return say("Finish this export first, or start over with another file.", "bad");
    early = forms.split ? null : file;
    if (early) return;
    tell(refusalOf(file));
    if (!wrong.hidden) return;
    startOver();
    nameAfter(file.name);
    sending = upload(file);
    draw();
    try {
      set({ upload: (await sending.answer).file_path });
    } catch (error) {
      tell(error.message);
    }
    sending = null;
    draw();
    if (query.get("upload")) begin.focus();
  }

  function tell(text) {
    setText(wrong, text);
    wrong.hidden = !text;
    if (text) say(text, "unseen");
  }

  // A name that no dataset has yet, from that of the file.
  function nameAfter(filename) {
    const stem = filename.replace(/\.zip$/i, "").replace(/[^\w.-]+/g, "-").replace(/^[.-]+|-+$/g, "") || "dataset";
    const isFree = (name) => !taken().includes(name) && !taken().includes(`${name}-split`);
    forms.convert.form.write("output_dir", freeName(stem, isFree));
    onOption("convert");
  }

  function startOver() {
    const names = STEPS.flatMap(({ kind, only }) => [kind, ...only]);
    set({ upload: null, accept: null, ...Object.fromEntries(names.map((name) => [name, null])) });
    KINDS.forEach(unset);
    draw();
  }

  // -- steps

  function onOption(kind) {
    set(forms[kind].form.changes());
    begin.disabled = !sumsToOne(forms.split.form);
  }

  function onBegin() {
    if (KINDS.every((kind) => forms[kind].form.check()) && sumsToOne(forms.split.form)) {
      list.focus();
      attempt(begin, next);
    }
  }

  // Does the first thing that is not done yet; stops where a job is under way or was no success.
  async function next({ isAgain = false } = {}) {
    if (isMoving) return;
    isMoving = true;
    try {
      for (const kind of KINDS) {
        if (!query.get(kind)) await submit(kind, isAgain);
        if (!isPassed(kind)) break;
      }
    } finally {
      isMoving = false;
      draw();
    }
  }

  async function submit(kind, isAgain) {
    try {
      const spec = specOf(kind);
      const other = isAgain ? null : await submittedElsewhere(spec);
      set({ [kind]: other ?? (await api.submit(spec)).job_id });
      await look(query.get(kind));
    } catch (problem) {
      refused[kind] = forms[kind].form.show(problem.errors ?? []).map(({ message }) => message).join(" ") || problem.message;
    }
  }

  // The same flow may be open in another tab or on another device, which was quicker.
  async function submittedElsewhere({ kind, data_path, output_dir }) {
    if (kind === "convert") return null;
    const { jobs: newest } = await api.get("/jobs", { kind, limit: 20 });
    const isSame = ({ spec, submitted_at }) => spec.data_path === data_path && spec.output_dir === output_dir && submitted_at > jobs.convert.completed_at;
    return newest.find(isSame)?.job_id;
  }

  function specOf(kind) {
    const options = forms[kind].form.values();
    if (kind === "convert") return { kind, sam2_zip_path: query.get("upload"), ...options };
    const data_path = jobs.convert.result.output_dir;
    if (kind === "validate") return { kind, data_path, format_type: jobs.convert.spec.target_format, ...options };
    return { kind, data_path, output_dir: `${data_path}-split`, ...options };
  }

  function isPassed(kind) {
    const job = jobs[kind];
    if (!query.get(kind) || job?.status !== "completed") return false;
    return kind !== "validate" || job.result.passed || query.get("accept") === job.job_id;
  }

  // This step and those behind it anew.
  async function again(kind) {
    if (!forms[kind].form.check()) return;
    list.focus();
    const later = KINDS.slice(KINDS.indexOf(kind));
    later.forEach(unset);
    set(Object.fromEntries(later.map((each) => [each, null])));
    await next({ isAgain: true });
  }

  function unset(kind) {
    delete jobs[kind];
    delete refused[kind];
  }

  function accept() {
    set({ accept: jobs.validate.job_id });
    next();
  }

  function nameOfSplit() {
    return nameOfData(jobs.split.spec.output_dir);
  }

  // -- what is shown

  function draw() {
    const isOpen = Boolean(sending || query.get("upload"));
    zone.element.hidden = isOpen;
    list.hidden = !isOpen;
    foot.hidden = !isOpen || Boolean(sending);
    begin.hidden = Boolean(query.get("convert") || refused.convert);
    replace(steps.upload.querySelector(".body"), sending?.element ?? h("p", { class: "note" }, query.get("upload")?.split("/").at(-1)));
    mark("upload", sending ? "running" : query.get("upload") ? "completed" : "waiting");
    KINDS.forEach(drawStep);
    drawEnd();
  }

  function drawStep(kind) {
    const job = jobs[kind];
    const isWaiting = !job && !refused[kind];
    const hasStopped = !isWaiting && (refused[kind] || (!isLive(job) && !isPassed(kind)));
    const isBegun = query.get("convert") || refused.convert;
    mark(kind, isWaiting ? "waiting" : hasStopped ? "failed" : job.status, job);
    const parts = [
      isWaiting && h("p", { class: "note" }, STEPS.find((step) => step.kind === kind).about),
      job && outcome(kind, job),
      refused[kind] && h("p", { class: "callout", data: { tone: "bad" } }, refused[kind]),
      (hasStopped || (isWaiting && !isBegun)) && forms[kind]?.element,
      hasStopped && repair(kind),
    ];
    keepFocus(steps[kind].querySelector(".body"), parts);
  }

  function repair(kind) {
    const isInvalid = !refused[kind] && jobs[kind].status === "completed"; // only a validation ends well and stops all the same
    const button = h("button", { type: "button", onclick: () => attempt(button, () => again(kind)) }, isInvalid ? "Validate again" : "Try again from here");
    return h("div", { class: "actions" }, button, isInvalid && h("button", { type: "button", onclick: accept }, "Split it all the same"));
  }

  function mark(kind, status, job) {
    steps[kind].dataset.status = status;
    const link = job && h("a", { href: `#/job/${job.job_id}`, class: "note" }, "job");
    replace(steps[kind].querySelector(".status"), status !== "waiting" && badge(status), link);
  }

  function drawEnd() {
    const isDone = KINDS.every((kind) => isPassed(kind));
    replace(end);
    setText(over, isDone ? "Prepare another export" : "Start over with another file");
    if (!isDone) return;
    const name = nameOfSplit();
    replace(end, h(
      "div", { class: "callout", data: { tone: "good" } }, h("p", {}, h("b", {}, name), " is ready."),
      h("div", { class: "actions" }, h("a", { class: "button primary", href: `#/train?data=${encodeURIComponent(name)}` }, "Start a training with it"), h("a", { class: "button", href: datasetAddress(name) }, "Look at it")),
    ));
  }
}

function outcome(kind, job) {
  if (isLive(job)) return [progressBar(job), h("p", { class: "note" }, saying(job) || "begins")];
  if (job.status !== "completed") return [h("p", { class: "callout", data: { tone: "bad" } }, job.failure_detail ?? `This step was ${job.status}.`)];
  const { result } = job;
  if (kind === "validate") return [h("p", {}, verdict(result)), findingsList([...result.errors, ...result.warnings].slice(0, 5))];
  const reason = result.mask_order_reason && `Mask order ${result.mask_order}: ${result.mask_order_reason}.`;
  return [h("p", {}, result.message), reason && h("p", { class: "note" }, reason), result.warnings.map((text) => h("p", { class: "callout" }, text))];
}

function verdict({ result, num_errors, num_warnings, statistics }) {
  const checked = `${number(statistics.total_checks)} checks on ${number(statistics.total_samples)} rows`;
  if (result === "passed") return `Valid: ${checked} found nothing.`;
  return `${result === "failed" ? "Not valid" : "Valid, with warnings"}: ${checked} found ${plural(num_errors, "error")} and ${plural(num_warnings, "warning")}.`;
}

// Puts the parts in place; a control that had the focus and is still there keeps it.
function keepFocus(body, parts) {
  const focused = document.activeElement;
  replace(body, parts);
  if (body.contains(focused)) focused.focus();
}
