// From a SAM2 export to a checked, divided dataset: an upload, then one job, shown as a list of steps.
//
// The address holds the flow (?upload=…&job=…, changed options by their names, and ?add_to=… for a dataset that grows),
// so a reload goes on where it was.

import * as api from "../api.js";
import { h, replace, setText } from "../dom.js";
import { number, plural } from "../format.js";
import { lookups } from "../gather.js";
import { attempt, say } from "../notices.js";
import { badge, isLive, progressBar, progressed, saying } from "../words.js";
import { freeName, optionsOf, SPLIT_FIELDS, sumsToOne } from "./data-options.js";
import { datasetAddress, findingsList, nameOfData, splitBar } from "./dataset-parts.js";
import { dropZone, refusalOf, upload } from "./upload.js";

const FIELDS = ["output_dir", "task", "model_name", "level", ...SPLIT_FIELDS, "target_format", "embed_images", "mask_order", "keep_empty_frames"];
const STEPS = { // a phase of the job, and what it is called and does; what else a job says belongs to the step before
  upload: ["Upload", ""],
  reading: ["Read", "What is in the export, and in which direction its masks count."],
  converting: ["Convert", "Frames and masks become rows that a model can learn from."],
  checking: ["Check", "Every row: pictures, masks, boxes, labels, duplicates."],
  writing: ["Divide", "Rows to learn from, to judge by, and to keep for the end."],
};
const PHASES = Object.keys(STEPS).slice(1);
const CHECKED = 0.8; // beyond this share a job that reads does so to divide
export const HEARD = [
  "job.submitted", "job.waiting", "job.placed", "job.started", "job.phase_entered", "job.progressed", "job.interrupted", "job.cancel_requested",
  "job.completed", "job.failed", "job.cancelled",
];

// → { element, load, hear, stop }. `datasets` tells those there are.
export function prepare({ query, set, datasets }) {
  let options = null; // { form, element }
  let job = null; // once it is begun
  let reached = null; // the phase it is in, or ended in
  let refused = ""; // why the service did not take it
  let sending = null; // the upload under way
  let early = null; // a file that was chosen before the options were here
  const look = lookups(take, forget);

  const zone = dropZone(send);
  const wrong = h("p", { class: "callout", data: { tone: "bad" }, hidden: true });
  const growing = h("p", { class: "callout", data: { tone: "good" } });
  const list = h("ol", { class: "steps", tabindex: -1 }); // takes the focus of a button that goes away
  const asked = h("div");
  const end = h("div", { class: "outcome" });
  const begin = h("button", { type: "button", class: "primary", onclick: () => onBegin() }, "Prepare");
  const over = h("button", { type: "button", class: "quiet", onclick: startOver });
  const foot = h("div", { class: "actions" }, begin, over);
  const element = h("section", { class: "card prepare", "aria-labelledby": "prepare-title" }, h("h2", { id: "prepare-title" }, "Prepare a SAM2 export"), growing, zone.element, wrong, list, asked, end, foot);
  const steps = Object.fromEntries(Object.entries(STEPS).map(([step, [title]]) => [
    step, h("li", { data: { step } }, h("h3", {}, title), h("div", { class: "status" }), h("div", { class: "body" })),
  ]));
  list.append(...Object.values(steps));

  const onUnload = (event) => sending && event.preventDefault();
  addEventListener("beforeunload", onUnload);
  draw();
  return { element, load, hear, stop };

  function stop() {
    removeEventListener("beforeunload", onUnload);
    zone.stop();
    sending?.cancel();
  }

  async function load() {
    options ??= await optionsOf("prepare", FIELDS, { query, onInput: onOption });
    if (query.get("job")) await look(query.get("job"));
    draw();
    if (early) send(early);
  }

  function take(found) {
    if (found.job_id !== query.get("job")) return; // started over since
    if (job?.job_id !== found.job_id) reached = null;
    job = found;
    refused = "";
    enter(job.phase);
  }

  function forget(id) {
    if (id === query.get("job")) refused = "The job was removed.";
  }

  // Of a job that divides, reading is no step back.
  function enter(phase) {
    const isSecond = phase === "reading" && (reached === "checking" || (job.fraction ?? 0) > CHECKED);
    if (PHASES.includes(phase)) reached = isSecond ? "writing" : phase;
  }

  async function hear(event) {
    if (event.job_id !== query.get("job")) return;
    if (event.type === "job.progressed" && job) {
      progressed(job, event);
      return drawSteps();
    }
    if (event.type === "job.phase_entered" && job) enter(event.phase);
    await look.quietly(event.job_id);
    draw();
    if (job?.status === "failed") say(job.failure_detail, "bad");
    else if (isDone()) say(`${nameOfSplit()} can be trained on.`);
  }

  // -- upload

  async function send(file) {
    if (sending || query.get("job")) return say("Finish this export first, or start over with another file.", "bad");
    early = options ? null : file;
    if (early) return;
    tell(refusalOf(file));
    if (!wrong.hidden) return;
    startOver({ add_to: query.get("add_to") });
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

  // That of the dataset that grows, or one that no dataset has yet, from that of the file.
  function nameAfter(filename) {
    const taken = new Set(datasets().map(({ name }) => name));
    const stem = filename.replace(/\.zip$/i, "").replace(/[^\w.-]+/g, "-").replace(/^[.-]+|-+$/g, "") || "dataset";
    options.form.write("output_dir", query.get("add_to") ?? freeName(stem, (name) => !taken.has(name) && !taken.has(`${name}-split`)));
    onOption();
  }

  function startOver({ add_to = null } = {}) {
    set({ upload: null, job: null, ...Object.fromEntries(FIELDS.map((name) => [name, null])), add_to });
    [job, reached, refused] = [null, null, ""];
    draw();
  }

  // -- the job

  function onOption() {
    set(options.form.changes());
    begin.disabled = !sumsToOne(options.form);
  }

  function onBegin(further = {}) {
    if (!options.form.check() || !sumsToOne(options.form)) return;
    list.focus();
    attempt(begin, () => submit(further));
  }

  async function submit(further) {
    try {
      const spec = { kind: "prepare", sam2_zip_path: query.get("upload"), ...options.form.values(), ...growth(), ...further };
      set({ job: (await api.submit(spec)).job_id });
      await look(query.get("job"));
    } catch (problem) {
      refused = options.form.show(problem.errors ?? []).map(({ message }) => message).join(" ") || problem.message;
    }
    draw();
  }

  // Rows that are there stay, and stay in their parts.
  function growth() {
    const name = query.get("add_to");
    if (!name) return {};
    const old = datasets().find((each) => each.name === name);
    const parts = datasets().find(({ split }) => split && nameOfData(split.source) === name);
    return { add_to: `datasets/${name}`, ...(old?.format && { target_format: old.format }), ...(old?.task && { task: old.task }), ...(parts && { keep: parts.data_path, split_dir: parts.data_path }) };
  }

  function isDone() {
    return job?.status === "completed" && job.result.success;
  }

  function nameOfSplit() {
    return nameOfData(job.result.split.train_path.replace(/\/[^/]*$/, ""));
  }

  // -- what is shown

  function draw() {
    const isOpen = Boolean(sending || query.get("upload"));
    const isAsking = isOpen && !sending && (!query.get("job") || refused || (job && !isLive(job) && !isDone()));
    zone.element.hidden = isOpen;
    list.hidden = !isOpen;
    foot.hidden = !isOpen || Boolean(sending);
    begin.hidden = !isAsking || !options;
    setText(begin, query.get("job") ? "Prepare again" : "Prepare");
    setText(over, isDone() ? "Prepare another export" : "Start over with another file");
    const base = query.get("add_to");
    growing.hidden = !base;
    setText(growing, base ? `The export is added to ${base}: rows that are there stay, and stay in their parts.` : "");
    drawSteps();
    keepFocus(asked, [refused && h("p", { class: "callout", data: { tone: "bad" } }, refused), isAsking && options?.element]);
    replace(end, job && !refused && outcome());
  }

  function drawSteps() {
    const at = PHASES.indexOf(reached);
    mark("upload", sending ? "running" : query.get("upload") ? "completed" : "waiting");
    keepFocus(steps.upload.querySelector(".body"), [sending?.element ?? h("p", { class: "note" }, query.get("upload")?.split("/").at(-1))]);
    PHASES.forEach((phase, place) => {
      const status = statusOf(place, at);
      const isHere = job && isLive(job) && place === Math.max(0, at);
      mark(phase, status);
      replace(steps[phase].querySelector(".body"), isHere ? [progressBar(job), h("p", { class: "note" }, saying(job) || "begins")] : h("p", { class: "note" }, STEPS[phase][1]));
    });
  }

  function statusOf(place, at) {
    if (!job || refused) return "waiting";
    if (job.status === "completed") return place < PHASES.length - 1 || job.result.split ? "completed" : "waiting";
    if (place < at) return "completed";
    return place === Math.max(0, at) ? job.status : "waiting";
  }

  function mark(step, status) {
    steps[step].dataset.status = status;
    replace(steps[step].querySelector(".status"), status !== "waiting" && badge(status));
  }

  function outcome() {
    if (isLive(job)) return h("p", { class: "note" }, h("a", { href: `#/job/${job.job_id}` }, "The job"), " goes on when this page is left.");
    if (job.status !== "completed") return h("p", { class: "callout", data: { tone: "bad" } }, job.failure_detail ?? `The job was ${job.status}.`);
    const { convert, validate, split, output_dir, warnings } = job.result;
    const reason = convert.mask_order_reason && `Mask order ${convert.mask_order}: ${convert.mask_order_reason}.`;
    return [
      h("p", {}, convert.message), reason && h("p", { class: "note" }, reason), convert.recommendation && h("p", {}, convert.recommendation),
      h("p", {}, verdict(validate)), findingsList([...validate.errors, ...validate.warnings].slice(0, 5)),
      warnings.map((text) => h("p", { class: "callout" }, text)), split && splitBar(split),
      split ? ready(nameOfSplit(), job.spec.model_name) : notDivided(nameOfData(output_dir)),
    ];
  }

  function notDivided(name) {
    return h(
      "div", { class: "callout", data: { tone: "bad" } }, h("p", {}, h("b", {}, name), " was not divided, because a check failed."),
      h("div", { class: "actions" }, h("a", { class: "button", href: datasetAddress(name) }, "Look at it"), h("button", { type: "button", onclick: () => onBegin({ allow_invalid_data: true }) }, "Divide it all the same")),
    );
  }
}

function ready(name, model) {
  const training = new URLSearchParams({ data: name, ...(model && { model_name: model }) });
  return h(
    "div", { class: "callout", data: { tone: "good" } }, h("p", {}, h("b", {}, name), " is ready."),
    h("div", { class: "actions" }, h("a", { class: "button primary", href: `#/train?${training}` }, "Start a training with it"), h("a", { class: "button", href: datasetAddress(name) }, "Look at it")),
  );
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
