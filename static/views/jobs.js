// The live list of jobs: what runs, what waits and why, what is done. Filters stand in the address.

import * as api from "../api.js";
import { arrange, h, replace, setText } from "../dom.js";
import { duration, number, plural, secondsBetween } from "../format.js";
import { drawing, gather, lookups } from "../gather.js";
import { listKeys } from "../keyboard.js";
import { follow } from "../live.js";
import { attempt } from "../notices.js";
import { cancelJob } from "../parts/cancel-job.js";
import { badge, isLive, KINDS, LIVE, progressBar, progressed, saying, STATUSES, titleOf } from "../words.js";
import "../elements/time-ago.js";

export const title = "Jobs";

const PAGE = 100;
const MOVES = ["job.progressed", "metrics.logged", "job.phase_entered"]; // drawn from the event itself
const TURNS = [ // they may move the others in the queue
  "job.submitted", "job.placed", "job.waiting", "job.interrupted", "job.paused", "job.resume_requested", "job.completed", "job.failed", "job.cancelled",
];
const HEARD = [...MOVES, ...TURNS, "job.started", "job.cancel_requested", "job.pause_requested", "job.noted", "training.resumed"];

export function render(root, { query, set }) {
  const jobs = new Map(); // job id → job
  const rows = new Map(); // job id → its row
  const moved = new Set(); // ids of jobs whose row is to be drawn
  const look = lookups(take, forget);
  const lookAtQueue = gather(loadQueue, 500);
  const drawMoved = drawing(() => moved.forEach(drawRow));
  let before = null; // the cursor of older jobs
  let isLoaded = false;

  const search = h("input", { type: "search", placeholder: "Search names and ids", "aria-label": "Search names and ids", value: query.get("q") ?? "", oninput: onFilter });
  const status = choice("Status", ["", "live", ...STATUSES], query.get("status"), (word) => word === "live" ? "not ended" : word || "any status");
  const kind = choice("Kind", ["", ...Object.keys(KINDS)], query.get("kind"), (word) => KINDS[word] ?? "any kind");
  const count = h("span", { class: "note" });
  const list = h("ul", { class: "rows", "aria-label": "Jobs, newest first" });
  const empty = h("div", { class: "empty", hidden: true });
  const older = h("button", { type: "button", hidden: true, onclick: () => attempt(older, loadOlder) }, "Older jobs");
  const loading = h("p", { class: "loading" }, "Loading …");
  root.append(
    h("div", { class: "head" }, h("h1", {}, "Jobs"), count, h("a", { class: "button primary", href: "#/train" }, "New training")),
    h("div", { class: "filters", role: "search" }, search, status, kind),
    loading, list, empty, h("p", { class: "more" }, older),
  );

  const stopKeys = listKeys(() => [...list.children], {
    "/": ["Search", () => search.focus()], n: ["New training", () => (location.hash = "#/train")],
    x: ["Cancel the row's job", () => document.activeElement?.closest(".job")?.querySelector(".actions button")?.click()],
  });
  const stopListening = follow({ types: HEARD, load, onEvents: (events) => events.forEach(({ event }) => hear(event)) });
  return () => {
    stopKeys();
    stopListening();
    lookAtQueue.stop();
    drawMoved.stop();
  };

  async function load(isNewest) {
    const page = await asked();
    if (!isNewest()) return;
    jobs.clear();
    page.jobs.forEach((job) => jobs.set(job.job_id, job));
    before = page.before;
    isLoaded = true;
    draw();
  }

  async function loadOlder() {
    const cursor = before;
    const page = await asked(cursor);
    if (cursor !== before) return;
    page.jobs.forEach((job) => jobs.has(job.job_id) || jobs.set(job.job_id, job));
    before = page.before;
    draw();
  }

  // A page of what the filter asks for. "Not ended" is several statuses, of which there are never many.
  async function asked(cursor) {
    const query = { limit: PAGE, kind: kind.value, before: cursor };
    if (status.value !== "live") return api.get("/jobs", { ...query, status: status.value });
    const pages = await Promise.all(LIVE.map((word) => api.get("/jobs", { ...query, limit: 1000, status: word })));
    return { jobs: pages.flatMap((page) => page.jobs), before: null };
  }

  // Places in the queue and reasons to wait change with what other jobs do.
  async function loadQueue() {
    const { queue } = await api.get("/train/queue");
    for (const { job_id, position: queue_position, reason: waiting_reason, predicted_start_at } of queue) {
      const job = jobs.get(job_id);
      if (job?.status !== "pending") continue; // it has begun since
      Object.assign(job, { queue_position, waiting_reason, predicted_start_at });
      drawRow(job_id);
    }
  }

  function choice(label, words, chosen, textOf) {
    const options = words.map((word) => h("option", { value: word, selected: word === (chosen ?? "") }, textOf(word)));
    return h("select", { "aria-label": label, onchange: onFilter }, options);
  }

  function onFilter(event) {
    set({ q: search.value.trim(), status: status.value, kind: kind.value });
    if (event.target === search) draw();
    else stopListening.reload();
  }

  function showAll() {
    search.value = status.value = kind.value = "";
    set({ q: "", status: "", kind: "" });
    stopListening.reload();
    search.focus();
  }

  // What moves often is drawn from the event itself; for anything else the job is looked up again.
  function hear(event) {
    if (MOVES.includes(event.type)) return move(event);
    look.quietly(event.job_id);
    if (TURNS.includes(event.type) && [...jobs.values()].some((job) => job.status === "pending")) lookAtQueue();
  }

  function move(event) {
    const job = jobs.get(event.job_id);
    if (!job) return;
    if (event.type === "job.progressed") progressed(job, event);
    else if (event.type === "job.phase_entered") job.phase = event.phase;
    else Object.assign(job, { step: event.step, train_loss: event.values.train_loss ?? job.train_loss });
    moved.add(job.job_id);
    drawMoved();
  }

  function take(job) {
    if (!jobs.has(job.job_id) && !isAsked(job)) return;
    jobs.set(job.job_id, job);
    drawRow(job.job_id);
  }

  function forget(id) {
    if (jobs.delete(id)) draw();
  }

  function draw() {
    if (!isLoaded) return;
    const wanted = [...jobs.values()].filter(isWanted).sort((one, other) => (one.job_id < other.job_id ? 1 : -1)); // newest first
    arrange(list, wanted.map(rowOf));
    for (const id of rows.keys()) if (!jobs.has(id)) rows.delete(id);
    loading.hidden = true;
    older.hidden = !before;
    empty.hidden = wanted.length > 0;
    setText(count, counted(wanted.length));
    if (wanted.length === 0) replace(empty, ...nothing());
  }

  function counted(shown) {
    if (!before) return jobs.size ? plural(shown, "job") : "";
    return search.value.trim() ? `${number(shown)} of the newest ${number(jobs.size)}` : `the newest ${number(shown)}`;
  }

  function nothing() {
    if (!search.value.trim() && !status.value && !kind.value) return noJobs();
    const where = before ? `None of the newest ${number(jobs.size)} fits; there are older ones.` : "Choose another status or kind, or clear the search.";
    return [h("h2", {}, "No job fits the filter"), h("p", {}, where), h("p", { class: "actions" }, h("button", { type: "button", onclick: showAll }, "Show all"))];
  }

  function isAsked(job) {
    const fits = status.value === "live" ? isLive(job) : !status.value || job.status === status.value;
    return fits && (!kind.value || job.kind === kind.value);
  }

  function isWanted(job) {
    const word = search.value.trim().toLowerCase();
    return isAsked(job) && (!word || `${titleOf(job, jobs)} ${job.job_id} ${job.kind}`.toLowerCase().includes(word));
  }

  function rowOf(job) {
    if (!rows.has(job.job_id)) rows.set(job.job_id, newRow(job, jobs));
    return fillRow(rows.get(job.job_id), job);
  }

  // The whole list only where this row comes or goes.
  function drawRow(id) {
    moved.delete(id);
    const job = jobs.get(id);
    const isShown = rows.get(id)?.isConnected ?? false;
    if (job && isShown && isWanted(job)) rowOf(job);
    else if (isShown || (job && isWanted(job))) draw();
  }
}

function newRow(job, jobs) {
  return h(
    "li", { class: "row job", data: { id: job.job_id } },
    h("div", { class: "what" }, h("a", { class: "title", href: `#/job/${job.job_id}` }, titleOf(job, jobs)), h("span", { class: "note kind" }, `${KINDS[job.kind]} · ${job.job_id.slice(-8)}`)),
    h("div", { class: "status" }), h("div", { class: "how" }), h("div", { class: "figures note" }), h("div", { class: "actions" }),
  );
}

// The button is made anew only when it comes or goes; its focus is given to the row's link.
function fillRow(row, job) {
  const canCancel = String(isLive(job) && !job.cancel_requested_at);
  if (row.dataset.status !== job.status) replace(row.querySelector(".status"), badge(job.status));
  if (row.dataset.cancel !== canCancel) {
    const actions = row.querySelector(".actions");
    if (actions.contains(document.activeElement)) row.querySelector("a").focus();
    replace(actions, canCancel === "true" && cancelButton(job));
  }
  Object.assign(row.dataset, { status: job.status, cancel: canCancel });
  const isMoving = job.status === "running" || job.status === "paused";
  replace(row.querySelector(".how"), isMoving && progressBar(job), h("span", { class: "saying", title: saying(job) ?? "" }, saying(job)));
  const took = job.started_at && duration(secondsBetween(job.started_at, job.completed_at));
  const loss = job.train_loss !== null && h("span", {}, "loss ", h("b", {}, number(job.train_loss)));
  replace(row.querySelector(".figures"), loss, took && h("span", { title: "from the first start" }, took), h("time-ago", { datetime: job.submitted_at }));
  return row;
}

function cancelButton(job) {
  const button = h("button", { type: "button", class: "quiet", "aria-label": `Cancel ${titleOf(job)}`, onclick: () => cancelJob(button, job) }, "Cancel");
  return button;
}

function noJobs() {
  return [
    h("h2", {}, "No job yet"),
    h("p", {}, "Upload a SAM2 export and prepare it, then start a training. Or run ", h("code", {}, "make demo"), " for the whole path on a sample."),
    h("p", { class: "actions" }, h("a", { class: "button primary", href: "#/data" }, "Prepare data"), h("a", { class: "button", href: "#/train" }, "New training")),
  ];
}
