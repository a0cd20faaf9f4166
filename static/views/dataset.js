// One dataset: its classes, how it is divided, what its validation found, and the jobs it comes from.

import * as api from "../api.js";
import { h, replace } from "../dom.js";
import { moment, number, percent, plural } from "../format.js";
import { gather } from "../gather.js";
import { follow } from "../live.js";
import { datasetAddress, findingsList, PARTS, splitBar, validationBadge } from "../parts/dataset-parts.js";
import { reportLink, splitButton, useLink, validateButton } from "../parts/dataset-actions.js";
import { card, facts, scroller } from "../parts/pieces.js";

const ENDS = ["job.completed", "job.failed", "job.cancelled"];

export function renderDataset(root, name) {
  const content = h("div", { class: "dataset-page" }, h("p", { class: "loading" }, "Loading …"));
  const actions = h("div", { class: "actions" });
  root.append(h("p", { class: "note" }, h("a", { href: "#/data" }, "All data")), h("div", { class: "head" }, h("h1", {}, name), actions), content);
  const leaving = new AbortController();
  const lookAgain = gather(load);
  const stop = follow({ types: ENDS, load, onEvents: lookAgain });
  return () => {
    leaving.abort();
    lookAgain.stop();
    stop();
  };

  async function load() {
    const { datasets } = await api.get("/data/datasets");
    const dataset = datasets.find((each) => each.name === name);
    if (!dataset) return replace(content, missing(name));
    const { validation, split } = dataset;
    const [made, checked] = await Promise.all([jobOrNull(dataset.job_id), validation && jobOrNull(validation.job_id)]);
    const source = split && datasets.find(({ data_path }) => data_path === split.source);
    const splits = datasets.filter((each) => each.split?.source === dataset.data_path);
    replace(actions, useLink(dataset, "primary"), !split && splitButton(dataset, leaving.signal), validateButton(dataset, leaving.signal), reportLink(dataset));
    replace(content, h(
      "div", { class: "cards" },
      h("div", {}, card("About", about(dataset, made?.result, splits)), card("Classes", classes(dataset.labels, made?.result.class_shares))),
      h("div", {}, card("Validation", findings(dataset, checked?.result)), card("Where it comes from", lineage(dataset, source, splits))),
    ));
  }
}

function missing(name) {
  return h(
    "div", { class: "empty" }, h("h2", {}, "There is no such dataset"), h("p", {}, `${name} was removed, or was never made.`),
    h("p", { class: "actions" }, h("a", { class: "button primary", href: "#/data" }, "All data")),
  );
}

// A job may have been removed while what it made is kept.
async function jobOrNull(id) {
  try {
    return await api.job(id);
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

function about({ num_samples, format, task, created_at, data_path, split, warnings }, result, splits) {
  const listed = {
    Rows: number(num_samples),
    Divided: split ? splitBar(split) : splits.length === 0 && "not yet: a training would have nothing to be judged by",
    Strategy: split?.strategy,
    Task: task,
    Format: format,
    Objects: result?.num_objects > 0 && number(result.num_objects),
    "Frames left out": result?.skipped_frames > 0 && number(result.skipped_frames),
    "Mask order": result?.mask_order && `${result.mask_order}: ${result.mask_order_reason}`,
    Made: moment(created_at),
    Path: h("code", {}, data_path),
  };
  return [
    facts(Object.entries(listed)),
    warnings.map((text) => h("p", { class: "callout" }, text)),
  ];
}

function lineage({ kind, job_id, split, validation }, source, splits) {
  const jobLink = (id, text) => h("a", { href: `#/job/${id}` }, text);
  const from = split && (source ? h("a", { href: datasetAddress(source.name) }, source.name) : h("code", {}, split.source));
  return h(
    "ul", { class: "lineage" },
    split ? h("li", {}, "Cut from ", from, ".") : h("li", {}, "Made from an uploaded export."),
    h("li", {}, kind === "split" ? "Divided by " : "Converted by ", jobLink(job_id, "this job"), "."),
    validation && h("li", {}, "Last checked by ", jobLink(validation.job_id, "this job"), "."),
    splits.map(({ name }) => h("li", {}, "Divided into ", h("a", { href: datasetAddress(name) }, name), ".")),
  );
}

// A row a class; of a split also the share of the class that fell into each part.
function classes(labels, shares) {
  const parts = Object.keys(PARTS).filter((part) => shares?.[part]);
  const names = new Set([...Object.keys(labels), ...parts.flatMap((part) => Object.keys(shares[part]))]);
  if (!names.size) return h("p", { class: "note" }, "Not known: the conversion it comes from was removed.");
  const total = Object.values(labels).reduce((sum, count) => sum + count, 0);
  const sorted = [...names].sort((one, other) => (labels[other] ?? 0) - (labels[one] ?? 0));
  const head = ["Objects", "Share", ...parts.map((part) => `in ${part}`)];
  return scroller("Classes", h(
    "table", {},
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Class"), head.map((text) => h("th", { scope: "col", class: "number" }, text)))),
    h("tbody", {}, sorted.map((label) => h(
      "tr", {}, h("th", { scope: "row" }, label),
      [number(labels[label]), percent(labels[label] / total), ...parts.map((part) => percent(shares[part][label] ?? 0))].map((text) => h("td", { class: "number" }, text)),
    ))),
  ));
}

function findings(dataset, result) {
  const { validation } = dataset;
  if (!validation) return h("p", {}, "It was not validated yet. A training on data with faults learns the faults.");
  const all = [...(result?.errors ?? []), ...(result?.warnings ?? [])];
  const checked = result && `${plural(result.statistics.total_checks, "check")} on ${plural(result.statistics.total_samples, "row")}.`;
  return [h("p", {}, validationBadge(validation), " ", h("span", { class: "note" }, checked)), findingsList(all)];
}
