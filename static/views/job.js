// One job, live: how it stands, what can be done with it, and by its kind the parts that show its work.
//
// The parts are in parts/ (plots, answers, history, log, tables, results). Each is a function that
// gives `{ element, load?, hear?, update?, stop? }`: `load` takes the past events, `hear` an event, `update` the job.

import * as api from "../api.js";
import { h, replace, setText } from "../dom.js";
import { asWritten, duration, moment, number, secondsBetween } from "../format.js";
import { lookups } from "../gather.js";
import { keys } from "../keyboard.js";
import { follow } from "../live.js";
import { attempt, confirm, say } from "../notices.js";
import { samples } from "../parts/answers.js";
import { cancelJob } from "../parts/cancel-job.js";
import { plots } from "../parts/plots.js";
import { history, TYPES as HISTORY } from "../parts/history.js";
import { logTail } from "../parts/log.js";
import { facts } from "../parts/pieces.js";
import { resultOf } from "../parts/results.js";
import { checkpoints, configuration } from "../parts/tables.js";
import { badge, isLive, KINDS, progressBar, progressed, saying, titleOf } from "../words.js";
import "../elements/time-ago.js";

export const title = "Job";

const PAST = [...HISTORY, "sample.predicted", "checkpoint.saved", "checkpoint.removed"];
const MOVES = new Set(["job.progressed", "metrics.logged", "sample.predicted", "checkpoint.saved", "checkpoint.removed", "job.phase_entered", "artifact.created"]);
const LOOK_MS = 15_000; // a place in the queue and a removal by someone else are no event of the job
const FAILED = {
  out_of_memory: "There was not enough memory", dataset_invalid: "The data cannot be used", conflict: "Something stood in the way", model_unavailable: "The model cannot be had",
  disk_full: "The disk is full", no_capacity: "No device can run it", timed_out: "It took too long", too_many_attempts: "It was interrupted too often", internal: "Something went wrong inside",
};

export function render(root, params) {
  const id = params.parts[0] ?? "";
  let job = null;
  let head = null;
  let parts = [];
  let isOver = false;
  const look = lookups(take, onGone);
  const loading = h("p", { class: "loading" }, "Loading …");
  root.append(loading);
  const stopKeys = keys({ x: ["Cancel the job", () => root.querySelector('[data-action="cancel"]')?.click()] });
  const stopListening = follow({ jobs: [id], load, onEvents, onGone });
  const clock = setInterval(() => job && head.tick(job), 1000);
  const looks = setInterval(() => document.hidden || !job || look.quietly(job.job_id), LOOK_MS);
  return stop;

  function stop() {
    isOver = true;
    stopKeys();
    stopListening();
    clearInterval(clock);
    clearInterval(looks);
    parts.forEach((part) => part.stop?.());
  }

  async function load(isNewest) {
    try {
      const [found, past] = await Promise.all([api.job(id), api.events(id, PAST)]);
      if (!isNewest()) return;
      if (!head) build(found);
      const events = past.map(({ event }) => event);
      await Promise.all(parts.map((part) => part.load?.(events)));
      if (isNewest()) take(found);
    } catch (error) {
      if (error.status !== 404) throw error;
      onGone();
    }
  }

  function build(found) {
    head = header(onRemoved);
    parts = partsOf(found, params);
    loading.remove();
    root.append(head.element, ...parts.map(({ element }) => element));
    document.title = `${titleOf(found)} · Training API`;
  }

  function take(found) {
    if (isOver) return;
    job = found;
    head.update(job);
    parts.forEach((part) => part.update?.(job));
    if (job.status === "pending") foresee();
  }

  // When it is likely to start depends on all jobs, so the queue says it. Without an answer the next look asks again.
  async function foresee() {
    const { queue } = await api.get("/train/queue").catch((error) => {
      if (!(error instanceof api.Problem)) throw error;
      return { queue: [] };
    });
    const mine = queue.find(({ job_id }) => job_id === job.job_id);
    if (isOver || !mine || job.status !== "pending") return;
    Object.assign(job, { queue_position: mine.position, waiting_reason: mine.reason, predicted_start_at: mine.predicted_start_at });
    head.update(job);
  }

  // What moves often is taken from the event; for anything else the job is looked up again.
  function onEvents(events) {
    if (isOver) return;
    for (const { event } of events) {
      parts.forEach((part) => part.hear?.(event));
      if (event.type === "job.progressed") progressed(job, event);
      if (event.type === "job.phase_entered") job.phase = event.phase;
    }
    if (events.some(({ event }) => !MOVES.has(event.type))) look.quietly(job.job_id);
    head.update(job);
  }

  function onRemoved() {
    stop();
    say(`${titleOf(job)} is removed.`);
    location.hash = "#/jobs";
  }

  function onGone() {
    if (isOver) return;
    stop();
    const [heading, sentence] = job ? [`${titleOf(job)} was removed`, "Somebody removed this job and what it wrote while you were looking."] : ["There is no such job", "It may have been removed, or the address is not complete."];
    replace(root, h("section", { class: "empty" }, h("h1", {}, heading), h("p", {}, sentence), h("p", { class: "actions" }, h("a", { class: "button primary", href: "#/jobs" }, "All jobs"))));
    document.title = `${heading} · Training API`;
  }
}

function partsOf(job, params) {
  const printed = logTail(job, params);
  const past = history();
  if (job.kind !== "finetune") return [result(), past, specOf(job), printed];
  const first = [result(), plots(job, params)];
  if (isLive(job)) first.reverse(); // so that the curves do not jump when the result comes
  return [...first, samples(params), past, checkpoints(), configuration(job.spec.config), printed];
}

// The sections of the result stand as soon as there is one, and are not drawn again.
function result() {
  const element = h("div", { class: "sections" });
  const update = (job) => job.result && !element.firstChild && replace(element, resultOf(job));
  return { element, update };
}

function specOf({ spec }) {
  const { kind, ...asked } = spec;
  const given = Object.entries(asked).filter(([, value]) => value !== null && value !== "" && String(value) !== "");
  const textOf = (name, value) => name === "job_id" ? h("a", { href: `#/job/${value}` }, value) : asWritten(value);
  return { element: h("section", { class: "card", id: "settings" }, h("h2", {}, `Settings of the ${KINDS[kind].toLowerCase()}`), facts(given.map(([name, value]) => [name.replaceAll("_", " "), textOf(name, value)]))) };
}

// -- the head of the page

// Elements stay while their text moves; buttons are made anew only when what can be done changes.
function header(onRemoved) {
  const name = h("h1", { class: "wrap" });
  const status = h("span");
  const actions = h("div", { class: "actions" });
  const line = h("p", { class: "job-saying" });
  const bar = h("div", { class: "job-bar" });
  const figures = h("dl", { class: "figures-of-job" });
  const elapsed = h("dd");
  const callouts = h("div");
  const element = h("header", { class: "job-head" }, h("div", { class: "head" }, name, status, actions), bar, line, figures, callouts);
  const entries = new Map(); // of the figures, by their term
  let drawn = "";
  return { element, update, tick };

  function update(job) {
    setText(name, titleOf(job));
    const state = JSON.stringify([job.status, job.cancel_requested_at, job.pause_requested_at]);
    if (state !== drawn) {
      drawn = state;
      replace(status, badge(job.status));
      replace(actions, actionsOf(job, onRemoved));
    }
    const isAsked = isLive(job) && (job.cancel_requested_at || job.pause_requested_at);
    setText(line, job.status === "running" || isAsked ? saying(job) ?? "" : ""); // the rest stands in callouts
    drawBar(job);
    drawFigures(job);
    const sentences = calloutsOf(job);
    if (callouts.textContent !== sentences.map((each) => each.textContent).join("")) replace(callouts, sentences);
    tick(job);
  }

  function tick(job) {
    setText(elapsed, duration(secondsBetween(job.started_at, isLive(job) ? null : job.completed_at ?? job.updated_at)));
  }

  // Each stays the same element, so that an id can be selected while a job runs.
  function drawFigures(job) {
    const pairs = figuresOf(job, elapsed);
    for (const [term, value] of pairs) {
      if (!entries.has(term)) entries.set(term, h("div", {}, h("dt", {}, term), value === elapsed ? elapsed : h("dd", {}, value)));
      else if (typeof value === "string") setText(entries.get(term).lastChild, value);
    }
    const wanted = pairs.map(([term]) => entries.get(term));
    if (wanted.length !== figures.children.length || wanted.some((entry, n) => entry !== figures.children[n])) replace(figures, wanted);
  }

  // Its place stays when the job ends, so that nothing below it jumps.
  function drawBar(job) {
    const old = bar.firstChild;
    const fresh = job.status === "running" || job.status === "paused" ? progressBar(job) : null;
    if (old && fresh && fresh.hasAttribute("value") && old.hasAttribute("value") && old.dataset.status === fresh.dataset.status) {
      old.value = fresh.value;
      old.setAttribute("aria-label", fresh.getAttribute("aria-label"));
    } else if (old || fresh) replace(bar, fresh);
  }
}

function figuresOf(job, elapsed) {
  const device = job.device && (job.device_name ? `${job.device} · ${job.device_name}` : job.device);
  const pairs = [
    ["Kind", `${KINDS[job.kind]} · ${job.job_id}`],
    ["Submitted", h("time-ago", { datetime: job.submitted_at })],
    ["Took", job.started_at && elapsed],
    ["Left", job.status === "running" && job.eta_s && duration(job.eta_s)],
    ["Epoch", job.epoch !== null && job.total_epochs && `${number(Math.round(job.epoch * 100) / 100)} of ${job.total_epochs}`],
    ["Device", device],
    ["Runner", job.runner_id],
    ["Attempt", job.attempt > 1 && `${job.attempt}${job.interruptions ? `, ${job.interruptions} unplanned` : ""}`],
    ["Ended", job.completed_at && moment(job.completed_at)],
    ["Tags", job.spec.tags?.length > 0 && job.spec.tags.map((tag) => [h("span", { class: "tag" }, tag), " "])],
  ];
  return pairs.filter(([, value]) => value);
}

function calloutsOf(job) {
  const callout = (tone, heading, text) => h("p", { class: "callout", data: { tone } }, heading && h("b", {}, `${heading}. `), text);
  const why = job.status === "failed" ? callout("bad", FAILED[job.failure_reason], job.failure_detail)
    : job.status === "pending" && saying(job) ? callout("", "It waits", saying(job))
    : job.status === "paused" ? callout("", "It is paused", "Its state is saved and its device is free. Resume it to go on from there.")
    : job.status === "cancelled" ? callout("", "It was cancelled", job.kind === "finetune" ? "What it wrote so far is kept until you delete it." : "It has no result.") : null;
  return [why, ...job.notes.map((note) => callout("", "", note))].filter(Boolean);
}

// -- what can be done

function actionsOf(job, onRemoved) {
  const isTraining = job.kind === "finetune";
  const canMove = isLive(job) && !job.cancel_requested_at;
  const button = (text, work, kind = "") => {
    const element = h("button", { type: "button", class: kind, data: { action: text.toLowerCase() }, onclick: () => work(element) }, text);
    return element;
  };
  const ask = (verb) => (element) => attempt(element, () => verb(job.job_id));
  const link = (text, href) => h("a", { class: "button", href }, text);
  return [
    isTraining && job.status === "completed" && link("Export", `#/exports?job=${job.job_id}`),
    isTraining && link("Compare", `#/compare?ids=${job.job_id}`),
    isTraining && link("Train again with these settings", `#/train?from=${job.job_id}`),
    isTraining && canMove && job.status === "running" && !job.pause_requested_at && button("Pause", ask(api.pause)),
    canMove && job.status === "paused" && button("Resume", ask(api.resume), "primary"),
    canMove && button("Cancel", (element) => cancelJob(element, job), "danger"),
    !isLive(job) && button("Delete", (element) => deleteJob(element, job, onRemoved), "danger"),
  ];
}

async function deleteJob(element, job, onRemoved) {
  const text = job.kind === "finetune" ? "Its checkpoints, curves and exports are removed from the disk." : "The job and what it wrote are removed from the disk.";
  if (!await confirm({ title: `Delete ${titleOf(job)}?`, text, action: "Delete" })) return;
  const isDone = await attempt(element, async () => (await api.removeJob(job.job_id), true));
  if (isDone) onRemoved();
}
