// All trainings as experiments: find, sort, choose some to compare, remove. Filters, order and choice stand in the address.

import * as api from "../api.js";
import { arrange, h, replace, setText } from "../dom.js";
import { duration, number, percent, plural, secondsBetween } from "../format.js";
import { drawing, lookups } from "../gather.js";
import { listKeys } from "../keyboard.js";
import { follow } from "../live.js";
import { attempt, confirm, say } from "../notices.js";
import { badge, isLive, methodOf, nameOf, STATUSES } from "../words.js";
import "../elements/time-ago.js";

export const title = "Experiments";

const LIMIT = 500;
const MOST = 10; // the service compares two to ten
const SERVER_SORTS = ["created_at", "duration_seconds", "best_eval_loss"]; // they decide which ones a long list keeps
const HEARD = [
  "metrics.logged", "training.resumed", "job.submitted", "job.placed", "job.started", "job.interrupted", "job.paused",
  "job.resume_requested", "job.cancel_requested", "job.completed", "job.failed", "job.cancelled",
];

// In the order of the table. `first` is the direction a column begins with, `best` which end of it is marked.
const COLUMNS = [
  { key: "experiment_name", label: "Name", first: "asc", of: (each) => nameOf(each).toLowerCase() },
  { key: "status", label: "Status", first: "asc", of: (each) => STATUSES.indexOf(each.status), draw: statusCell },
  { key: "model_name", label: "Model", first: "asc", of: (each) => each.model_name, draw: (each) => each.model_name },
  { key: "method", label: "Method", first: "asc", of: methodOf, draw: methodOf },
  { key: "learning_rate", label: "LR", first: "desc", of: (each) => each.learning_rate, draw: (each) => String(each.learning_rate), isNumber: true },
  { key: "batch_size", label: "Batch", first: "desc", of: (each) => each.batch_size, draw: (each) => number(each.batch_size), isNumber: true },
  { key: "best_eval_loss", label: "Eval loss", title: "The lowest of all evaluations", first: "asc", best: Math.min, of: (each) => each.best_eval_loss, draw: (each) => number(each.best_eval_loss), isNumber: true },
  { key: "best_eval_accuracy", label: "Accuracy", title: "The highest of all evaluations", first: "desc", best: Math.max, of: (each) => each.best_eval_accuracy, draw: (each) => percent(each.best_eval_accuracy), isNumber: true },
  { key: "final_train_loss", label: "Train loss", title: "At the end of the training", first: "asc", of: (each) => each.final_train_loss, draw: trainLossCell, isNumber: true },
  { key: "duration_seconds", label: "Duration", title: "From the first start to the end", first: "desc", of: (each) => each.duration_seconds, draw: (each) => duration(each.duration_seconds), isNumber: true },
  { key: "created_at", label: "Created", first: "desc", of: (each) => each.created_at, draw: (each) => h("time-ago", { datetime: each.created_at }) },
];

export function render(root, { query, set }) {
  const experiments = new Map(); // id → summary
  const rows = new Map(); // id → its row
  const strangers = new Set(); // ids of jobs that are no training
  const chosen = new Set((query.get("ids") ?? "").split(",").filter(Boolean));
  const look = lookups(take, forget);
  const drawSoon = drawing(refill);
  let isLoaded = false;

  const search = h("input", { type: "search", placeholder: "Search names, models and ids", "aria-label": "Search names, models and ids", value: query.get("q") ?? "", oninput: onSearch });
  const status = h("select", { "aria-label": "Status", onchange: () => reload({ status: status.value }) },
    ["", ...STATUSES].map((word) => h("option", { value: word, selected: word === (query.get("status") ?? "") }, word || "any status")));
  const sorter = h("select", { class: "sorter", "aria-label": "Sort by", onchange: () => sortBy(sorter.value, columnOf(sorter.value).first) },
    COLUMNS.map(({ key, label }) => h("option", { value: key }, `sort by ${label.toLowerCase()}`)));
  const tag = h("span", { class: "chosen-tag" });
  const count = h("span", { class: "note" });
  const heads = COLUMNS.map(head);
  const list = h("tbody", { role: "rowgroup" });
  const table = h("table", { class: "experiments", role: "table", "aria-label": "Experiments", hidden: true },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, h("td", { role: "cell" }), heads, h("td", { role: "cell" }))), list);
  const empty = h("div", { class: "empty", hidden: true });
  const loading = h("p", { class: "loading" }, "Loading …");
  const compare = h("a", { class: "button primary" });
  const hint = h("span", { class: "note" });
  const bar = h("section", { class: "choice", "aria-label": "Chosen experiments", hidden: true }, hint, compare, h("button", { type: "button", onclick: clearChoice }, "Clear"));
  root.append(
    h("div", { class: "head" }, h("h1", {}, "Experiments"), count, h("a", { class: "button primary", href: "#/train" }, "New training")),
    h("div", { class: "filters", role: "search" }, search, status, sorter, tag),
    h("div", { class: "experiments-frame" }, loading, table), empty, bar,
  );
  drawTag();

  const stopKeys = listKeys(() => [...list.children], {
    "/": ["Search", () => search.focus()],
    x: ["Choose or drop the row", () => choose(document.activeElement?.closest("tr")?.dataset.id)],
    c: ["Compare what is chosen", () => compare.hidden || compare.click()],
  });
  const stopListening = follow({ types: HEARD, load, onEvents: (events) => events.forEach(({ event }) => hear(event)) });
  return () => {
    stopKeys();
    stopListening();
    drawSoon.stop();
  };

  // -- what is shown

  async function load(isNewest) {
    const wanted = order().key;
    const found = await api.get("/experiments", {
      status: status.value, tag: query.get("tag"), limit: LIMIT, sort_by: SERVER_SORTS.includes(wanted) ? wanted : null,
    });
    if (!isNewest()) return;
    experiments.clear();
    found.forEach((each) => experiments.set(each.experiment_id, each));
    isLoaded = true;
    const isAll = !status.value && !query.get("tag") && found.length < LIMIT;
    for (const id of chosen) if (isAll && !experiments.has(id)) chosen.delete(id); // removed since the address was made
    draw();
    found.filter(isLive).forEach((each) => look.quietly(each.experiment_id)); // the list does not say how far they are
  }

  function reload(changes) {
    set(changes);
    drawTag();
    stopListening.reload();
  }

  function onSearch() {
    set({ q: search.value.trim() });
    draw();
  }

  function order() {
    const column = columnOf(query.get("sort_by")) ?? columnOf("created_at");
    return { ...column, direction: query.get("order") ?? column.first };
  }

  function sortBy(key, direction) {
    set({ sort_by: key === "created_at" && direction === "desc" ? "" : key, order: direction === columnOf(key).first ? "" : direction });
    if (experiments.size === LIMIT) reload({});
    else draw();
  }

  function head({ key, label, title: says, first, isNumber }) {
    const turn = () => sortBy(key, order().key === key ? (order().direction === "asc" ? "desc" : "asc") : first);
    return h("th", { role: "columnheader", scope: "col", class: isNumber ? "number" : null, data: { field: key } }, h("button", { type: "button", title: says, onclick: turn }, label));
  }

  function draw() {
    if (!isLoaded) return;
    const { key, of, direction } = order();
    const shown = [...experiments.values()].filter(isWanted).sort(comparing(of, direction));
    heads.forEach((each) => {
      if (each.dataset.field === key) each.setAttribute("aria-sort", direction === "asc" ? "ascending" : "descending");
      else each.removeAttribute("aria-sort");
    });
    sorter.value = key;
    arrange(list, shown.map(rowOf));
    for (const id of rows.keys()) if (!experiments.has(id)) rows.delete(id);
    loading.hidden = true;
    table.hidden = shown.length === 0;
    empty.hidden = shown.length > 0;
    setText(count, experiments.size === LIMIT ? `the first ${LIMIT}` : experiments.size ? plural(shown.length, "experiment") : "");
    if (shown.length === 0) replace(empty, ...nothing());
    markBest();
    drawChoice();
  }

  function isWanted(each) {
    const word = search.value.trim().toLowerCase();
    const fits = (!status.value || each.status === status.value) && (!query.get("tag") || each.tags.includes(query.get("tag")));
    return fits && (!word || `${nameOf(each)} ${each.model_name} ${each.experiment_id}`.toLowerCase().includes(word));
  }

  function rowOf(each) {
    const id = each.experiment_id;
    if (!rows.has(id)) rows.set(id, newRow(each));
    return fillRow(rows.get(id), each);
  }

  function newRow(each) {
    const name = nameOf(each);
    const box = h("input", { type: "checkbox", "aria-label": `Compare ${name}`, onchange: () => choose(each.experiment_id) });
    const tags = each.tags.map((word) => h("button", { type: "button", class: "tag", title: `Only ${word}`, onclick: () => reload({ tag: word }) }, word));
    const [, ...others] = COLUMNS;
    return h(
      "tr", { role: "row", data: { id: each.experiment_id } },
      h("td", { role: "cell", class: "box" }, h("label", {}, box)),
      h("th", { role: "rowheader", scope: "row", class: "what" }, h("a", { class: "title", title: name, href: `#/job/${each.experiment_id}` }, name), tags.length > 0 && h("span", { class: "tags" }, tags)),
      others.map(({ key, label, isNumber }) => h("td", { role: "cell", class: isNumber ? "number" : null, data: { field: key, label } })),
      h("td", { role: "cell", class: "remove" }),
    );
  }

  function fillRow(row, each) {
    for (const { key, draw: content } of COLUMNS) {
      if (content && key !== "created_at") update(row.querySelector(`[data-field="${key}"]`), content(each));
    }
    if (row.dataset.status !== each.status) {
      row.dataset.status = each.status;
      replace(row.querySelector('[data-field="created_at"]'), columnOf("created_at").draw(each));
      replace(row.querySelector(".remove"), !isLive(each) && removeButton(each));
    }
    row.querySelector("input").checked = chosen.has(each.experiment_id);
    row.classList.toggle("chosen", chosen.has(each.experiment_id));
    return row;
  }

  function markBest() {
    for (const { key, of, best } of COLUMNS.filter((column) => column.best)) {
      const shown = [...list.children].map((row) => [row, of(experiments.get(row.dataset.id))]);
      const values = shown.map(([, value]) => value).filter((value) => value !== null);
      const winner = new Set(values).size > 1 ? best(...values) : undefined;
      shown.forEach(([row, value]) => row.querySelector(`[data-field="${key}"]`).classList.toggle("best", value === winner));
    }
  }

  function drawTag() {
    const word = query.get("tag");
    replace(tag, word && h("button", { type: "button", "aria-label": `Any tag instead of ${word}`, onclick: () => reload({ tag: "" }) }, `tag: ${word} ✕`));
  }

  function nothing() {
    const isFiltered = Boolean(search.value.trim() || status.value || query.get("tag"));
    if (isFiltered) {
      return [h("h2", {}, "No experiment fits the filter"), h("p", {}, "Another status or tag, or an empty search, shows more."), h("button", { type: "button", onclick: clearFilters }, "Show all")];
    }
    return [
      h("h2", {}, "No experiment yet"), h("p", {}, "Each training is an experiment: start two with different settings and compare them here."),
      h("p", { class: "actions" }, h("a", { class: "button primary", href: "#/train" }, "New training"), h("a", { class: "button", href: "#/data" }, "Prepare data")),
    ];
  }

  function clearFilters() {
    search.value = status.value = "";
    reload({ q: "", status: "", tag: "" });
  }

  // -- what is chosen

  function choose(id) {
    if (!rows.has(id)) return;
    if (!chosen.delete(id)) chosen.add(id);
    set({ ids: [...chosen].join(",") });
    fillRow(rows.get(id), experiments.get(id));
    drawChoice();
  }

  function clearChoice() {
    chosen.clear();
    set({ ids: "" });
    draw();
  }

  function drawChoice() {
    bar.hidden = chosen.size === 0;
    compare.hidden = chosen.size < 2 || chosen.size > MOST;
    compare.href = `#/compare?ids=${[...chosen].join(",")}`;
    setText(compare, `Compare ${plural(chosen.size, "experiment")}`);
    setText(hint, chosen.size === 1 ? "1 chosen. Choose another one to compare." : chosen.size > MOST ? `${chosen.size} chosen. At most ${MOST} can be compared.` : "");
  }

  // -- what changes

  // Losses are drawn from the event itself; for anything else the training is looked up again. Rows keep their places.
  function hear(event) {
    const each = experiments.get(event.job_id);
    if (event.type !== "metrics.logged") {
      if (!strangers.has(event.job_id)) look.quietly(event.job_id); // one that the filter left out may fit it now
    } else if (each) {
      each.train_loss = event.values.train_loss ?? each.train_loss;
      each.best_eval_loss = better(Math.min, each.best_eval_loss, event.values.eval_loss);
      each.best_eval_accuracy = better(Math.max, each.best_eval_accuracy, event.values.eval_accuracy);
      each.fraction = event.total_steps ? event.step / event.total_steps : each.fraction;
      drawSoon();
    }
  }

  function take(job) {
    if (job.kind !== "finetune") return strangers.add(job.job_id);
    const summary = summaryOf(job);
    const isHere = rows.get(job.job_id)?.isConnected ?? false;
    experiments.set(job.job_id, summary);
    if (isHere === isWanted(summary)) drawSoon();
    else draw();
  }

  function forget(id) {
    experiments.delete(id);
    if (chosen.delete(id)) set({ ids: [...chosen].join(",") });
    draw();
  }

  function refill() {
    for (const row of list.children) fillRow(row, experiments.get(row.dataset.id));
    markBest();
  }

  function removeButton(each) {
    const button = h("button", { type: "button", class: "quiet icon", title: "Delete", "aria-label": `Delete ${nameOf(each)}` }, "✕");
    button.addEventListener("click", async () => {
      const text = "Its checkpoints, its log and its exports are removed. This cannot be undone.";
      if (!(await confirm({ title: `Delete ${nameOf(each)}?`, text, action: "Delete the experiment" }))) return;
      const done = await attempt(button, () => api.remove(`/experiments/${encodeURIComponent(each.experiment_id)}`));
      if (!done) return;
      forget(each.experiment_id);
      say(`${nameOf(each)} is deleted.`);
    });
    return button;
  }
}

const columnOf = (key) => COLUMNS.find((column) => column.key === key);

// What has no value comes last in either direction.
function comparing(of, direction) {
  const sign = direction === "asc" ? 1 : -1;
  const isMissing = (value) => value === null || value === undefined;
  return (one, other) => {
    const [a, b] = [of(one), of(other)];
    if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
    return a === b ? 0 : a < b ? -sign : sign;
  };
}

function update(cell, content) {
  if (typeof content === "string") setText(cell, content);
  else if (cell.textContent !== content.textContent) replace(cell, content);
}

function statusCell({ status, fraction }) {
  return h("span", {}, badge(status), status === "running" && fraction ? h("span", { class: "note" }, ` ${Math.floor(100 * fraction)} %`) : null);
}

function trainLossCell(each) {
  if (!isLive(each)) return number(each.final_train_loss);
  return h("span", { class: "so-far", title: "so far" }, number(each.train_loss));
}

function better(best, before, value) {
  if (value === null || value === undefined) return before;
  return before === null ? value : best(before, value);
}

function summaryOf(job) {
  const { config, experiment_name, tags } = job.spec;
  return {
    ...config, experiment_id: job.job_id, experiment_name, tags, status: job.status, best_eval_loss: job.best_eval_loss, best_eval_accuracy: job.best_eval_accuracy,
    train_loss: job.train_loss, final_train_loss: isLive(job) ? null : (job.result?.final_train_loss ?? job.train_loss), fraction: job.fraction,
    created_at: job.submitted_at, completed_at: job.completed_at, duration_seconds: job.completed_at && secondsBetween(job.started_at, job.completed_at),
  };
}
