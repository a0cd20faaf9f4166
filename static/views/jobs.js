// The live list of jobs: what runs, what waits and why, what is done. Filters stand in the address.

import * as api from "../api.js";
import { h, replace, setText } from "../dom.js";
import { duration, number, plural, secondsBetween } from "../format.js";
import { listKeys } from "../keyboard.js";
import { follow } from "../live.js";
import { attempt, confirm, say } from "../notices.js";
import { badge, isLive, KINDS, progressBar, saying, STATUSES, titleOf } from "../words.js";
import "../elements/time-ago.js";

export const title = "Jobs";

const PAGE = 100;
const CHANGES_NOTHING_HERE = new Set(["sample.predicted", "checkpoint.saved", "checkpoint.removed", "artifact.created"]);

export function render(root, { query, set }) {
  const jobs = new Map(); // job id → job, newest first
  const rows = new Map(); // job id → its row
  const looking = new Map(); // job id → whether to look again: a burst of events costs one request
  let before = null; // the cursor of older jobs

  const search = h("input", { type: "search", placeholder: "Search names and ids", "aria-label": "Search names and ids", value: query.get("q") ?? "", oninput: onFilter });
  const status = choice("Status", ["", "live", ...STATUSES], query.get("status"), (word) => word === "live" ? "not ended" : word || "any status");
  const kind = choice("Kind", ["", ...Object.keys(KINDS)], query.get("kind"), (word) => KINDS[word] ?? "any kind");
  const count = h("span", { class: "note" });
  const list = h("ul", { class: "rows", "aria-label": "Jobs, newest first" });
  const empty = h("div", { class: "empty", hidden: true });
  const older = h("button", { type: "button", hidden: true, onclick: () => attempt(older, loadOlder) }, "Older jobs");
  root.append(
    h("div", { class: "head" }, h("h1", {}, "Jobs"), count, h("a", { class: "button primary", href: "#/train" }, "New training")),
    h("div", { class: "filters", role: "search" }, search, status, kind),
    list, empty, h("p", { class: "more" }, older),
  );

  const stopKeys = listKeys(() => [...list.children], { "/": ["Search", () => search.focus()], n: ["New training", () => (location.hash = "#/train")] });
  const stopListening = follow({ load, onEvents: (events) => events.forEach(({ event }) => hear(event)) });
  return () => {
    stopKeys();
    stopListening();
  };

  async function load() {
    const page = await api.get("/jobs", { limit: PAGE, kind: kind.value });
    jobs.clear();
    page.jobs.forEach((job) => jobs.set(job.job_id, job));
    before = page.before;
    draw();
  }

  async function loadOlder() {
    const page = await api.get("/jobs", { limit: PAGE, kind: kind.value, before });
    page.jobs.forEach((job) => jobs.has(job.job_id) || jobs.set(job.job_id, job));
    before = page.before;
    draw();
  }

  function choice(label, words, chosen, textOf) {
    const options = words.map((word) => h("option", { value: word, selected: word === (chosen ?? "") }, textOf(word)));
    return h("select", { "aria-label": label, onchange: onFilter }, options);
  }

  function onFilter(event) {
    set({ q: search.value.trim(), status: status.value, kind: kind.value });
    if (event.target === kind) load().catch((error) => say(error.message, "bad"));
    else draw();
  }

  // What moves often is drawn from the event itself; for anything else the job is looked up again.
  function hear(event) {
    const job = jobs.get(event.job_id);
    if (job && event.type === "job.progressed") {
      Object.assign(job, pick(event, "step", "total_steps", "epoch", "total_epochs", "eta_s", "phase"));
      job.fraction = Math.max(job.fraction ?? 0, event.fraction);
      job.progress_percentage = Math.min(99.9, 100 * job.fraction);
      drawRow(job);
    } else if (job && event.type === "metrics.logged") {
      Object.assign(job, pick(event.values, "train_loss", "eval_loss"), { step: event.step });
      drawRow(job);
    } else if (!CHANGES_NOTHING_HERE.has(event.type)) look(event.job_id);
  }

  async function look(id) {
    if (looking.has(id)) return looking.set(id, true);
    looking.set(id, false);
    try {
      take(id, await api.job(id));
    } catch (error) {
      if (error.status === 404) forget(id);
    }
    const again = looking.get(id);
    looking.delete(id);
    if (again) look(id);
  }

  function take(id, job) {
    const isNew = !jobs.has(id);
    if (isNew && kind.value && job.kind !== kind.value) return;
    if (!isNew) return jobs.set(id, job) && drawRow(job);
    const others = [...jobs];
    jobs.clear();
    [[id, job], ...others].forEach(([key, value]) => jobs.set(key, value));
    draw();
  }

  function forget(id) {
    jobs.delete(id);
    rows.get(id)?.remove();
    rows.delete(id);
  }

  function draw() {
    const wanted = [...jobs.values()].filter(isWanted);
    list.replaceChildren(...wanted.map(rowOf));
    for (const id of rows.keys()) if (!jobs.has(id)) rows.delete(id);
    older.hidden = !before;
    empty.hidden = wanted.length > 0;
    setText(count, jobs.size ? plural(wanted.length, "job") : "");
    if (wanted.length === 0) replace(empty, ...nothing(jobs.size > 0));
  }

  function isWanted(job) {
    const word = search.value.trim().toLowerCase();
    const fits = status.value === "live" ? isLive(job) : !status.value || job.status === status.value;
    return fits && (!word || `${titleOf(job)} ${job.job_id} ${job.kind}`.toLowerCase().includes(word));
  }

  function rowOf(job) {
    if (!rows.has(job.job_id)) rows.set(job.job_id, h("li", { class: "row job", data: { id: job.job_id } }));
    return fillRow(rows.get(job.job_id), job);
  }

  function drawRow(job) {
    if (!isWanted(job) || !rows.get(job.job_id)?.isConnected) return draw();
    rowOf(job);
  }
}

// Keeps the row's link and buttons where the status is the same, so that the focus stays.
function fillRow(row, job) {
  const address = `#/job/${job.job_id}`;
  if (row.dataset.status !== job.status || row.dataset.cancel !== String(Boolean(job.cancel_requested_at))) {
    row.dataset.status = job.status;
    row.dataset.cancel = String(Boolean(job.cancel_requested_at));
    replace(
      row,
      h("div", { class: "what" }, h("a", { class: "title", href: address }, titleOf(job)), h("span", { class: "note kind" }, `${KINDS[job.kind]} · ${job.job_id.slice(-8)}`)),
      badge(job.status), h("div", { class: "how" }), h("div", { class: "figures note" }),
      h("div", { class: "actions" }, isLive(job) && !job.cancel_requested_at && cancelButton(job)),
    );
  }
  const isMoving = job.status === "running" || job.status === "paused";
  replace(row.querySelector(".how"), isMoving && progressBar(job), h("span", { class: "saying", title: saying(job) ?? "" }, saying(job)));
  const took = job.started_at && duration(secondsBetween(job.started_at, job.completed_at));
  const loss = job.train_loss !== null && h("span", {}, "loss ", h("b", {}, number(job.train_loss)));
  replace(row.querySelector(".figures"), loss, took && h("span", { title: "from the first start" }, took), h("time-ago", { datetime: job.submitted_at }));
  return row;
}

function cancelButton(job) {
  const button = h("button", { type: "button", class: "quiet", "aria-label": `Cancel ${titleOf(job)}` }, "Cancel");
  button.addEventListener("click", async () => {
    const text = job.kind === "finetune" ? "What it saved so far stays. A cancelled training cannot go on." : "It ends without a result.";
    if (await confirm({ title: `Cancel ${titleOf(job)}?`, text, action: "Cancel the job" })) await attempt(button, () => api.cancel(job.job_id));
  });
  return button;
}

function nothing(isFiltered) {
  if (isFiltered) return [h("h2", {}, "No job fits the filter"), h("p", {}, "Choose another status or kind, or clear the search.")];
  return [
    h("h2", {}, "No job yet"),
    h("p", {}, "Upload a SAM2 export and prepare it, then start a training. Or run ", h("code", {}, "make demo"), " for the whole path on a sample."),
    h("p", { class: "actions" }, h("a", { class: "button primary", href: "#/data" }, "Prepare data"), h("a", { class: "button", href: "#/train" }, "New training")),
  ];
}

function pick(from, ...names) {
  return Object.fromEntries(names.filter((name) => from[name] !== undefined && from[name] !== null).map((name) => [name, from[name]]));
}
