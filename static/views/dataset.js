// One dataset: its frames, its classes and sizes, how it is divided and what leaks, what checks found, where it comes from.

import * as api from "../api.js";
import { h, replace } from "../dom.js";
import { moment, number, percent, plural } from "../format.js";
import { gather } from "../gather.js";
import { follow } from "../live.js";
import { beforeAndAfter, datasetAddress, findingsList, histograms, leaks, nameOfData, PARTS, splitBar, validationBadge } from "../parts/dataset-parts.js";
import { growLink, repairButton, reportLink, splitButton, useLink, validateButton } from "../parts/dataset-actions.js";
import { frames } from "../parts/frames.js";
import { card, classBars, facts, scroller } from "../parts/pieces.js";

const ENDS = ["job.completed", "job.failed", "job.cancelled"];

export function renderDataset(root, params) {
  const name = params.parts.join("/");
  const content = h("div", { class: "dataset-page" }, h("p", { class: "loading" }, "Loading …"));
  const actions = h("div", { class: "actions" });
  root.append(h("p", { class: "note" }, h("a", { href: "#/data" }, "All data")), h("div", { class: "head" }, h("h1", {}, name), actions), content);
  const leaving = new AbortController();
  const lookAgain = gather(load);
  const stop = follow({ types: ENDS, load, onEvents: lookAgain });
  let looked = null; // { of, grid }: the frames of a dataset stay while only what is said of it is new
  let said = ""; // what is shown, as text: another job's end changes nothing here
  return () => {
    leaving.abort();
    looked?.grid.stop();
    lookAgain.stop();
    stop();
  };

  async function load() {
    const dataset = await datasetOrNull(name);
    if (leaving.signal.aborted) return;
    const text = JSON.stringify(dataset);
    if (said === text) return;
    said = text;
    if (!dataset) return replace(content, missing(name));
    const { split } = dataset;
    const grid = framesOf(dataset);
    replace(actions, useLink(dataset, "primary"), !split && splitButton(dataset, leaving.signal), !split && growLink(dataset), validateButton(dataset, leaving.signal), reportLink(dataset));
    const pair = (one, other) => h("div", { class: "cards" }, h("div", {}, one), h("div", {}, other));
    const top = pair(card("About", about(dataset)), card("Checks", findings(dataset, grid.open)));
    const bottom = pair([card("Classes", classes(dataset)), sizes(dataset)], [card("Where it comes from", origin(dataset)), reports(dataset)]);
    const division = leakage(dataset, leaving.signal);
    if (grid.element.isConnected) { // it keeps its place, its scrolling and its focus
      content.firstChild.replaceWith(top);
      while (grid.element.previousSibling !== top) grid.element.previousSibling.remove();
      if (division) top.after(division);
      while (grid.element.nextSibling) grid.element.nextSibling.remove();
      content.append(bottom);
    } else replace(content, top, division, grid.element, bottom);
  }

  function framesOf(dataset) {
    const { split, data_path, job_id, labels } = dataset;
    const of = `${job_id} ${data_path}`;
    if (looked?.of !== of) {
      looked?.grid.stop();
      const parts = split ? partsOf(split) : { all: data_path };
      const byCount = Object.entries(labels).sort(([, one], [, other]) => other - one).map(([label]) => label);
      looked = { of, grid: frames(params, parts, byCount) };
    }
    return looked.grid;
  }
}

function partsOf({ train_path, val_path, test_path, guard_samples }) {
  const guard = train_path.replace(/[^/]*$/, "guard.jsonl");
  return { train: train_path, val: val_path, test: test_path, ...(guard_samples > 0 && { guard }) };
}

async function datasetOrNull(name) {
  try {
    return await api.get(datasetPath(name));
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

const datasetPath = (name) => `/data/datasets/${name.split("/").map(encodeURIComponent).join("/")}`;

function missing(name) {
  return h(
    "div", { class: "empty" }, h("h2", {}, "There is no such dataset"), h("p", {}, `${name} was removed, or was never made.`),
    h("p", { class: "actions" }, h("a", { class: "button primary", href: "#/data" }, "All data")),
  );
}

function about({ num_samples, format, task, created_at, data_path, split, splits, num_objects, skipped_frames, warnings }) {
  return [
    facts([
      ["Rows", number(num_samples)],
      ["Divided", split ? splitBar(split) : splits.length === 0 && "not yet: a training would have nothing to be judged by"],
      ["Strategy", split?.strategy],
      ["Task", task],
      ["Format", format],
      ["Objects", num_objects > 0 && number(num_objects)],
      ["Frames left out", skipped_frames > 0 && number(skipped_frames)],
      ["Made", moment(created_at)],
      ["Path", h("code", {}, data_path)],
    ]),
    warnings.map((text) => h("p", { class: "callout" }, text)),
  ];
}

// -- checks

function findings({ validation, checked }, open) {
  if (!validation) return h("p", {}, "It was not validated yet. A training on data with faults learns the faults.");
  const { errors, warnings, statistics } = checked;
  const said = statistics.total_checks !== undefined && `${plural(statistics.total_checks, "check")} on ${plural(statistics.total_samples, "row")}.`;
  return [h("p", {}, validationBadge(validation), " ", h("span", { class: "note" }, said)), findingsList([...errors, ...warnings], open)];
}

function sizes({ checked }) {
  const drawn = checked ? histograms(checked.statistics) : [];
  return drawn.length > 0 && card("Sizes", drawn);
}

function reports({ reports: all }) {
  const link = (address, text, label) => address && h("a", { href: address, download: true, "aria-label": label }, text);
  return all.length > 0 && card("Reports", h("ul", { class: "lineage" }, all.map((report) => h(
    "li", { class: "report" }, validationBadge(report), h("span", { class: "note" }, `${nameOfData(report.data_path)} · ${report.level} · ${moment(report.checked_at)}`),
    h("span", { class: "actions" }, link(report.markdown_url, "Markdown", `Report of ${moment(report.checked_at)} as Markdown`), link(report.json_url, "JSON", `Report of ${moment(report.checked_at)} as JSON`), h("a", { href: `#/job/${report.job_id}` }, "job")),
  ))));
}

// -- how it is divided

function leakage(dataset, leaving) {
  const { divided } = dataset;
  if (!divided || !Object.keys(divided.leakage).length) return null;
  return h(
    "section", { class: "card", id: "leaks" }, h("h2", {}, "Leakage between the parts"), h("div", { class: "leaks" }, leaks(divided.leakage)),
    divided.repair && h(
      "div", { class: "repair" }, h("h3", {}, "A division that leaks less"), h("p", {}, divided.repair.message), beforeAndAfter(divided.repair),
      h("p", { class: "actions" }, repairButton(dataset, divided.repair, leaving)),
    ),
  );
}

// Bars by class; of a split also the share of the class that fell into each part.
function classes({ labels, divided }) {
  const shares = divided?.class_shares ?? {};
  const parts = Object.keys(PARTS).filter((part) => shares[part]);
  const names = [...new Set([...Object.keys(labels), ...parts.flatMap((part) => Object.keys(shares[part]))])].sort((one, other) => (labels[other] ?? 0) - (labels[one] ?? 0));
  if (!names.length) return h("p", { class: "note" }, "Not known: the conversion it comes from was removed.");
  return [
    classBars(labels),
    parts.length > 0 && scroller("Share of each class in the parts", h(
      "table", { class: "class-shares" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Class"), parts.map((part) => h("th", { scope: "col", class: "number" }, `in ${part}`)))),
      h("tbody", {}, names.map((label) => h("tr", {}, h("th", { scope: "row" }, label), parts.map((part) => h("td", { class: "number" }, percent(shares[part][label] ?? 0)))))),
    )),
  ];
}

// -- where it comes from

const STEPS = { split: "Divided", convert: "Converted" };

function origin({ name, source, lineage, splits }) {
  const steps = lineage.map((step) => h(
    "li", {}, nameOfData(step.name) === name ? STEPS[step.spec.kind] : [STEPS[step.spec.kind], " as ", h("a", { href: datasetAddress(nameOfData(step.name)) }, nameOfData(step.name))],
    " by ", h("a", { href: `#/job/${step.job_id}` }, step.job_kind === "prepare" ? "this preparation" : "this job"), step.spec.kind === "split" ? `: ${step.spec.strategy}, seed ${step.spec.random_seed}.` : `: ${step.spec.task}, seed ${step.spec.seed}.`,
  ));
  return [
    h("ul", { class: "lineage" }, steps, splits.map((each) => h("li", {}, "Divided into ", h("a", { href: datasetAddress(each) }, each), "."))),
    source && facts([
      ["Export", source.upload],
      ["Read as", source.format],
      ["Exports merged", source.sources.length > 1 && number(source.sources.length)],
      ["SHA-256", source.sha256 && h("code", {}, source.sha256)],
      ["Videos", source.videos > 0 && number(source.videos)],
      ["Masks count along", source.mask_order && { row: "rows", column: "columns" }[source.mask_order]],
      ["Because", source.mask_order_reason],
      ["Software", source.software_version],
    ]),
  ];
}
