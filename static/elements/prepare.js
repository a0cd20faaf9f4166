// From a SAM2 export to a split dataset: upload, then three jobs one after the other, shown as one list of steps.
//
// The address holds the flow (?upload=…&convert=…&validate=…&split=…, and changed options by their names), so a reload
// goes on where it was. `next` is told nothing: it looks at what there is and does what is missing.

import * as api from "../api.js";
import { h, replace, setText } from "../dom.js";
import { bytes, duration, number, plural } from "../format.js";
import { attempt, say } from "../notices.js";
import { badge, isLive, progressBar, saying } from "../words.js";
import { datasetAddress } from "./dataset-parts.js";
import { schemaForm } from "./schema-form.js";

export const WORDS = {
  output_dir: { title: "Name", description: "The dataset is kept under it; a slash makes folders." },
  task: {
    title: "Task", description: "What the model is to answer when it sees a frame.",
    options: { classify: "classify: the labels alone", describe: "describe: counts and places in a sentence", detect: "detect: a list of labels and boxes" },
  },
  target_format: { title: "Format", description: "How the rows lie on disk.", options: { llava: "LLaVA: conversations", huggingface: "Hugging Face: an Arrow folder", coco: "COCO: instances" }, "x-advanced": true },
  mask_order: { title: "Mask order", description: "The direction in which the masks count pixels.", options: { auto: "find out", row: "along rows", column: "down columns" }, "x-advanced": true },
  keep_empty_frames: { title: "Keep empty frames", description: "Frames without an object become rows too.", "x-advanced": true },
  level: { title: "Strictness", description: "Strict also complains of what only may be wrong.", options: { basic: "basic", strict: "strict" } },
  strategy: {
    title: "Strategy", description: "How rows are told apart.",
    options: { temporal: "temporal: no video in two parts", stratified: "stratified: each class keeps its share", random: "random" },
  },
  train_ratio: { title: "Train share", description: "To learn from." },
  val_ratio: { title: "Validation share", description: "To judge by on the way." },
  test_ratio: { title: "Test share", description: "Kept for the end." },
};
const RATIOS = ["train_ratio", "val_ratio", "test_ratio"];
const BEGIN_WITH = { task: "classify", strategy: "temporal" }; // what a first training learns soonest, and is judged by honestly
export const SPLIT_FIELDS = ["strategy", ...RATIOS];

const STEPS = [
  { kind: "convert", title: "Convert", about: "Frames and masks become rows that a model can learn from.", only: ["output_dir", "task", "target_format", "mask_order", "keep_empty_frames"] },
  { kind: "validate", title: "Validate", about: "Every row is checked: pictures, masks, boxes, labels, duplicates.", only: ["level"] },
  { kind: "split", title: "Split", about: "Rows to learn from, to judge by, and to keep for the end.", only: SPLIT_FIELDS },
];

// The form of a kind, with its groups as the view's words say; `sum` is the live sum of a split's shares.
export async function optionsOf(kind, only, onInput = () => {}) {
  const schema = await api.get(`/schemas/${kind}`);
  const words = Object.fromEntries(only.map((name) => [name, { ...WORDS[name], "x-group": "options" }]));
  const sum = h("p", { class: "sum", role: "status" });
  const form = schemaForm(schema, { words, only, onInput: () => (showSum(form, only, sum), onInput()) });
  for (const [name, text] of Object.entries(BEGIN_WITH)) if (only.includes(name)) form.write(name, text);
  form.begin();
  showSum(form, only, sum);
  return { form, element: h("div", { class: "options" }, form.group("options"), kind === "split" && sum) };
}

export function sumsToOne(form) {
  return Math.abs(RATIOS.reduce((sum, name) => sum + form.value(name), 0) - 1) <= 0.001;
}

function showSum(form, only, sum) {
  if (!only.includes("train_ratio")) return;
  const total = RATIOS.reduce((all, name) => all + (form.value(name) ?? 0), 0);
  setText(sum, sumsToOne(form) ? "The shares add up to 1." : `The shares add up to ${number(total)}; they must add up to 1.`);
  sum.classList.toggle("error", !sumsToOne(form));
}

// → { element, load, hear, stop }. `taken` tells the names of datasets there are.
export function prepare({ query, set, taken }) {
  const forms = {}; // kind → { form, element }
  const jobs = {}; // kind → the job, once it is begun
  const steps = {}; // kind, or "upload" → its place in the list
  const refused = {}; // kind → why the service did not take it
  let sending = null; // the upload under way
  let isMoving = false;

  const file = h("input", { type: "file", accept: ".zip", id: "export-file", onchange: () => file.files[0] && send(file.files[0]) });
  const drop = h(
    "label", { class: "drop", for: "export-file" },
    h("b", {}, "Drop the ZIP of a SAM2 export here"), file, h("span", { class: "button" }, "Choose a file"),
    h("span", { class: "note" }, "It is uploaded, converted, validated and split; each step can be looked at."),
  );
  const wrong = h("p", { class: "callout", data: { tone: "bad" }, role: "alert", hidden: true });
  const list = h("ol", { class: "steps" });
  const begin = h("button", { type: "button", class: "primary", onclick: onBegin }, "Prepare");
  const over = h("button", { type: "button", class: "quiet", onclick: startOver }, "Start over with another file");
  const end = h("div", { role: "status" });
  const foot = h("div", { class: "actions" }, begin, over);
  const element = h("section", { class: "card prepare", "aria-labelledby": "prepare-title" }, h("h2", { id: "prepare-title" }, "Prepare a SAM2 export"), drop, wrong, list, end, foot);

  for (const { kind, title } of [{ kind: "upload", title: "Upload" }, ...STEPS]) {
    steps[kind] = h("li", { data: { step: kind } }, h("h3", {}, title), h("div", { class: "status" }), h("div", { class: "body" }));
    list.append(steps[kind]);
  }

  const target = document; // a file that misses the zone must not replace the page
  const onDragOver = (event) => {
    event.preventDefault();
    drop.classList.add("over");
  };
  const onDragEnd = (event) => event.relatedTarget || drop.classList.remove("over");
  const onDrop = (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
  };
  const onUnload = (event) => sending && event.preventDefault();
  target.addEventListener("dragover", onDragOver);
  target.addEventListener("dragleave", onDragEnd);
  target.addEventListener("drop", onDrop);
  addEventListener("beforeunload", onUnload);
  draw();

  return { element, load, hear, stop };

  function stop() {
    target.removeEventListener("dragover", onDragOver);
    target.removeEventListener("dragleave", onDragEnd);
    target.removeEventListener("drop", onDrop);
    removeEventListener("beforeunload", onUnload);
    sending?.abort();
  }

  // What the address says of the flow; begun once, it goes on by itself.
  async function load() {
    for (const { kind, only } of STEPS) {
      if (!forms[kind]) {
        forms[kind] = await optionsOf(kind, only, () => onOption(kind));
        forms[kind].form.restore(query);
      }
      if (query.get(kind)) await look(kind);
    }
    draw();
    if (query.get("convert")) next();
  }

  async function look(kind) {
    try {
      const job = await api.job(query.get(kind));
      delete refused[kind];
      const hasEnded = jobs[kind]?.job_id === job.job_id && !isLive(jobs[kind]);
      if (!hasEnded) jobs[kind] = job; // answers may overtake one another: what has ended stays so
    } catch (error) {
      if (error.status !== 404) throw error;
      refused[kind] = "The job of this step was removed.";
    }
  }

  async function hear(event) {
    const kind = STEPS.map((step) => step.kind).find((each) => query.get(each) === event.job_id);
    if (!kind) return;
    if (event.type === "job.progressed" && jobs[kind]) {
      const { step, total_steps, fraction, eta_s } = event;
      Object.assign(jobs[kind], { step, total_steps, fraction, eta_s, progress_percentage: 100 * fraction });
      return drawStep(kind);
    }
    await look(kind).catch((error) => say(error.message, "bad"));
    drawStep(kind);
    next();
  }

  // -- upload

  async function send(chosen) {
    if (sending || file.disabled || query.get("convert")) return say("Finish this export first, or start over with another file.", "bad");
    tell(refusalOf(chosen));
    if (!wrong.hidden) return;
    startOver();
    sending = new AbortController();
    const upload = { name: chosen.name, size: chosen.size, sent: 0, begun: Date.now() };
    nameAfter(chosen.name);
    draw();
    const bar = h("progress", { max: upload.size, value: 0, "aria-label": `Upload of ${upload.name}` });
    const figures = h("span", { class: "note" });
    const cancel = h("button", { type: "button", onclick: () => sending.abort() }, "Cancel upload");
    replace(steps.upload.querySelector(".body"), bar, h("div", { class: "line" }, figures, cancel));
    try {
      const answer = await api.upload(chosen, (sent) => {
        const took = (Date.now() - upload.begun) / 1000;
        bar.value = sent;
        const left = took > 1 ? ` · ${bytes(sent / took)}/s · ${duration((upload.size - sent) * took / sent)} left` : "";
        setText(figures, sent < upload.size ? `${bytes(sent)} of ${bytes(upload.size)}${left}` : "All is sent; the service checks it.");
      }, sending.signal);
      set({ upload: answer.file_path });
      begin.disabled = false;
    } catch (error) {
      tell(error.message);
    } finally {
      sending = null;
      draw();
    }
    if (query.get("upload")) begin.focus();
  }

  function tell(text) {
    setText(wrong, text);
    wrong.hidden = !text;
  }

  // A name that no dataset has yet, from that of the file.
  function nameAfter(filename) {
    const stem = filename.replace(/\.zip$/i, "").replace(/[^\w.-]+/g, "-").replace(/^[.-]+|-+$/g, "") || "dataset";
    let name = stem;
    for (let number = 2; taken().includes(name) || taken().includes(`${name}-split`); number++) name = `${stem}-${number}`;
    forms.convert.form.write("output_dir", name);
    onOption("convert");
  }

  function startOver() {
    const names = STEPS.flatMap(({ kind, only }) => [kind, ...only]);
    set({ upload: null, accept: null, ...Object.fromEntries(names.map((name) => [name, null])) });
    for (const { kind } of STEPS) {
      delete jobs[kind];
      delete refused[kind];
    }
    file.value = "";
    draw();
  }

  // -- steps

  function onOption(kind) {
    set(forms[kind].form.changes());
    begin.disabled = !sumsToOne(forms.split.form);
  }

  function onBegin() {
    if (STEPS.every(({ kind }) => forms[kind].form.check()) && sumsToOne(forms.split.form)) attempt(begin, next);
  }

  // Does the first thing that is not done yet; stops where a job is under way or was no success.
  async function next({ isAgain = false } = {}) {
    if (isMoving) return;
    isMoving = true;
    try {
      for (const { kind } of STEPS) {
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
      await look(kind);
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
    const later = STEPS.map((step) => step.kind).slice(STEPS.findIndex((step) => step.kind === kind));
    for (const each of later) {
      delete jobs[each];
      delete refused[each];
    }
    set(Object.fromEntries(later.map((each) => [each, null])));
    await next({ isAgain: true });
  }

  function accept() {
    set({ accept: jobs.validate.job_id });
    next();
  }

  // -- what is shown

  function draw() {
    const isOpen = Boolean(sending || query.get("upload"));
    drop.hidden = isOpen;
    file.disabled = !forms.split;
    list.hidden = !isOpen;
    foot.hidden = !isOpen || Boolean(sending);
    begin.hidden = Boolean(query.get("convert") || refused.convert);
    if (!sending) replace(steps.upload.querySelector(".body"), h("p", { class: "note" }, query.get("upload")?.split("/").at(-1)));
    mark("upload", sending ? "running" : query.get("upload") ? "completed" : "waiting");
    STEPS.forEach(({ kind }) => drawStep(kind));
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
    const isDone = STEPS.every(({ kind }) => isPassed(kind));
    replace(end);
    setText(over, isDone ? "Prepare another export" : "Start over with another file");
    if (!isDone) return;
    const name = jobs.split.spec.output_dir.replace(/^datasets\//, "");
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

export function findingsList(findings) {
  return h("ul", { class: "findings" }, findings.map(({ severity, message, remedy, rows }) => h(
    "li", { class: "callout", data: { tone: severity === "error" ? "bad" : "warn" } },
    h("p", {}, h("b", {}, severity), ` ${message}`), remedy && h("p", { class: "note" }, remedy),
    rows.length > 0 && h("p", { class: "note" }, `Such as ${rows.slice(0, 5).join(", ")}.`),
  )));
}

function refusalOf({ name, size }) {
  if (!/\.zip$/i.test(name)) return `${name} is not a ZIP archive. Choose the ZIP that the annotation tool exported.`;
  return size === 0 ? `${name} is empty. Export it again.` : "";
}

// Puts the parts in place; a control that had the focus and is still there keeps it.
function keepFocus(body, parts) {
  const focused = document.activeElement;
  replace(body, parts);
  if (body.contains(focused)) focused.focus();
}
