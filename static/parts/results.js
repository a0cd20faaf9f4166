// What a finished job answers, by kind: each function takes the result and gives the sections to show.

import { address, get } from "../api.js";
import { h, setText } from "../dom.js";
import { bytes, megabytes, number, percent, plural } from "../format.js";
import { answerCard } from "./answers.js";
import { beforeAndAfter, datasetAddress, findingsList, histograms, leaks, nameOfData, splitBar, validationBadge, withoutHistograms } from "./dataset-parts.js";
import { previewOf } from "./preview.js";
import { bars, card, classBars, facts, scroller } from "./pieces.js";

const BY_KIND = { prepare, convert, validate, split, preview, plan, finetune, evaluate, generate, export: exported };

export function resultOf(job) {
  return job.result ? BY_KIND[job.kind](job.result, job.spec) : [];
}

function plan(result, { config }) {
  const { tokens } = result;
  const sum = (counts) => Object.values(counts).reduce((total, count) => total + count, 0);
  return [
    callouts(result.warnings),
    card("Plan", facts([
      ["Model", config.model_name], ["Parameters", number(sum(result.parameters))], ["Trained", number(sum(result.trainable_parameters))], ["Rows", number(result.rows)],
      ["Steps", number(result.steps)], ["Tokens of half the rows", number(tokens.p50)], ["Tokens of the longest row", number(tokens.max)], ["Of it picture", number(tokens.image_max)],
      ["Measured by the probe", result.probe && megabytes(result.probe.peak_memory_bytes)],
    ]), h("p", { class: "note" }, "Where it fits and how long it takes is said beside the form of a new training.")),
  ];
}

function callouts(sentences) {
  return sentences.map((sentence) => h("p", { class: "callout" }, sentence));
}

// -- data

function convert(result) {
  return [
    callouts(result.warnings),
    card("Dataset", facts([
      ["Written to", h("code", {}, result.output_dir)], ["Samples", number(result.num_samples)], ["Objects", number(result.num_objects)],
      ["Frames left out", number(result.skipped_frames)], ["Mask order", result.mask_order], ["Why this order", result.mask_order_reason],
    ]), next("Validate and split it", datasetAddress(nameOfData(result.output_dir)))),
    Object.keys(result.labels).length > 0 && card("Labels", classBars(result.labels)),
  ];
}

function prepare(result) {
  const { split: divided, validate: checked } = result;
  return [
    h("p", { class: "callout", data: { tone: result.success ? (checked.num_warnings ? "" : "good") : "bad" } }, result.message),
    callouts(result.warnings),
    card("Dataset", h("p", {}, validationBadge(checked)), findingsList([...checked.errors, ...checked.warnings]), divided && splitBar(divided),
      h("p", { class: "actions" }, h("a", { class: "button", href: datasetAddress(nameOfData(result.output_dir)) }, "Look at the dataset"), divided && h("a", { class: "button", href: datasetAddress(nameOfData(divided.train_path.replace(/\/[^/]*$/, ""))) }, "Look at the parts"), reportButton(checked.report_id))),
    Object.keys(result.convert.labels).length > 0 && card("Labels", classBars(result.convert.labels)),
  ];
}

function reportButton(id) {
  return h("a", { class: "button", href: address(`/data/download_validation_report/${encodeURIComponent(id)}`), download: true }, "Download the report");
}

function validate(result, { data_path }) {
  const words = { passed: ["good", "Every check passed."], passed_with_warnings: ["", "The dataset can be trained on; look at the warnings first."], failed: ["bad", "The dataset has errors: a training would refuse it."] };
  const [tone, sentence] = words[result.result];
  const { labels, ...statistics } = result.statistics;
  const found = [...result.errors, ...result.warnings];
  const remedies = found.map(({ remedy }) => remedy).filter(Boolean);
  const further = result.recommendations.filter((sentence) => !remedies.some((remedy) => sentence.endsWith(remedy))); // the others stand at their finding
  return [
    h("p", { class: "callout", data: { tone } }, h("b", {}, sentence), ` ${plural(result.num_errors, "error")}, ${plural(result.num_warnings, "warning")}.`),
    found.length > 0 && card("Findings", findingsList(found)),
    further.length > 0 && card("What to do", h("ul", { class: "sentences" }, further.map((sentence) => h("li", {}, sentence)))),
    card("Statistics", facts(Object.entries(withoutHistograms(statistics)).map(([name, value]) => [name.replaceAll("_", " "), statistic(value)])),
      h("p", { class: "actions" }, lookAtData(data_path), reportButton(result.report_id))),
    histograms(statistics).length > 0 && card("Sizes", histograms(statistics)),
    labels && Object.keys(labels).length > 0 && card("Labels", classBars(labels)),
  ];
}

function statistic(value) {
  if (typeof value === "number") return number(value);
  if (value === null || typeof value !== "object") return String(value);
  return Object.entries(value).map(([name, each]) => `${name} ${statistic(each)}`).join(" · ");
}

// A dataset is validated by the path of its rows, of which only the list of datasets tells whose they are.
function lookAtData(path) {
  const link = h("a", { class: "button", hidden: true }, "Look at the dataset");
  get("/data/datasets").then(({ datasets }) => {
    const of = datasets.find(({ data_path, split }) => [data_path, split?.train_path, split?.val_path, split?.test_path].some((each) => each && nameOfData(each) === nameOfData(path)));
    if (of) Object.assign(link, { href: datasetAddress(of.name), hidden: false });
  }).catch(() => {}); // the report is here all the same
  return link;
}

function split(result, { output_dir }) {
  const counts = { train: result.train_samples, val: result.val_samples, test: result.test_samples, ...(result.guard_samples && { "guard gap": result.guard_samples }) };
  const whole = Object.values(counts).reduce((sum, count) => sum + count, 0);
  const classes = [...new Set(Object.values(result.class_shares).flatMap(Object.keys))].sort();
  const splits = Object.keys(result.class_shares);
  return [
    callouts(result.warnings),
    card("Split",
      h("div", { class: "shares", role: "img", "aria-label": Object.entries(counts).map(([name, count]) => `${name} ${percent(count / whole)}`).join(", ") },
        Object.entries(counts).map(([name, count], tone) => count > 0 && h("span", { style: { "flex-grow": count, background: name === "guard gap" ? "var(--soft)" : `var(--series-${tone})` } }))),
      h("ul", { class: "phase-times" }, Object.entries(counts).map(([name, count], tone) => h("li", {}, h("span", { class: "swatch", "aria-hidden": "true", style: { color: name === "guard gap" ? "var(--soft)" : `var(--series-${tone})` } }), `${name} `, h("b", {}, number(count)), ` (${percent(count / whole)})`))),
      facts([["Train", h("code", {}, result.train_path)], ["Validation", h("code", {}, result.val_path)], ["Test", h("code", {}, result.test_path)]]),
      next("Train on it", `#/train?data=${encodeURIComponent(nameOfData(output_dir))}`)),
    Object.keys(result.leakage).length > 0 && card("Leakage between the parts", h("div", { class: "leaks" }, leaks(result.leakage)), result.repair && [h("p", {}, result.repair.message), beforeAndAfter(result.repair), next("Mend it", datasetAddress(nameOfData(output_dir)))]),
    classes.length > 0 && card("Share of each class", scroller("Share of each class", h(
      "table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Class"), splits.map((name) => h("th", { scope: "col", class: "number" }, name)))),
      h("tbody", {}, classes.map((name) => h("tr", {}, h("th", { scope: "row" }, name), splits.map((each) => h("td", { class: "number" }, percent(result.class_shares[each][name] ?? 0)))))),
    ))),
  ];
}

// -- models

// Of the metrics of an evaluation, those that are shares, besides its accuracy.
const SCORES = { eval_exact_match: "Exact match", eval_json_validity: "Valid JSON", eval_box_iou: "Box overlap", eval_box_iou_50: "Boxes that overlap by half" };

function finetune(result) {
  const total = sum(result.total_parameters);
  return [card("Result", facts([
    ["Best eval loss", number(result.best_eval_loss)], ["Best eval accuracy", percent(result.best_eval_accuracy)], ["Final train loss", number(result.final_train_loss)],
    ...Object.entries(SCORES).map(([name, words]) => [`${words} at the best step`, result.best_scores?.[name] !== undefined && percent(result.best_scores[name])]),
    ["Steps", number(result.steps)], ["Peak memory", megabytes(result.peak_memory_bytes)],
    ["Trained parameters", total ? `${number(sum(result.trainable_parameters))} of ${number(total)}` : null],
    ["Best checkpoint", result.best_checkpoint_path && h("code", {}, result.best_checkpoint_path)],
  ]))];
}

function evaluate(result) {
  const shares = { "exact match": result.exact_match, ...(result.label_accuracy !== null && { "label accuracy": result.label_accuracy }), ...(result.constant_accuracy !== null && { "best fixed answer": result.constant_accuracy }), ...((result.json_validity ?? null) !== null && { "valid JSON": result.json_validity }), ...((result.box_iou ?? null) !== null && { "box overlap": result.box_iou, "boxes that overlap by half": result.box_iou_50 }) };
  const gain = result.label_accuracy !== null && result.constant_accuracy !== null ? result.label_accuracy - result.constant_accuracy : null;
  const sentence = gain === null ? null : gain > 0.005 ? `It is ${percent(gain).replace(" %", "")} percentage points better than always giving the most frequent answer.` : "It is no better than always giving the most frequent answer.";
  return [
    card("Score", bars(shares, { text: percent }), sentence && h("p", {}, sentence), result.grey_images && h("p", { class: "callout" }, "All pictures were replaced by plain grey: this is what guessing scores."), facts([["Rows", number(result.rows)], ["Loss", number(result.loss)]])),
    answers(result.answers),
  ];
}

function preview(result) {
  return [card("What is trained", previewOf(result))];
}

function generate(result) {
  return [answers(result.answers)];
}

function answers(list) {
  return card("Answers", list.length > 0 ? h("ul", { class: "answers" }, list.map(answerCard)) : h("p", { class: "note" }, "No single answers were kept."));
}

function exported(result) {
  const { rows, tokens, ...differences } = result.verification;
  const download = h("a", { class: "button primary", "aria-disabled": "true" }, "Download");
  const problem = h("p", { class: "error" });
  linkOf(result.export_id).then((url) => {
    download.href = url;
    download.removeAttribute("aria-disabled");
    download.download = "";
  }).catch((error) => setText(problem, error.message));
  return [
    card("Export", h("p", {}, result.message), facts([
      ["Format", result.export_format], ["Archive", `${result.archive_path} · ${bytes(result.archive_bytes)}`], ["SHA-256", h("code", {}, result.archive_sha256)],
      ["Model", h("code", {}, result.export_path)], ["Model card", result.model_card_path && h("code", {}, result.model_card_path)],
    ]), h("p", { class: "actions" }, download), problem),
    Object.keys(differences).length > 0 && card("Verification",
      h("p", {}, `The export was loaded again and compared${rows ? ` on ${plural(rows, "row")}` : ""}${tokens ? `, ${plural(tokens, "token")}` : ""}. The largest difference of each check:`),
      facts(Object.entries(differences).map(([name, value]) => [name.replaceAll("_", " "), number(value)]))),
  ];
}

// The list has the signed link of this very export; the training's own address gives that of its newest.
async function linkOf(id) {
  const { exports: list } = await get("/export/list");
  const found = list.find((each) => each.export_id === id);
  if (!found) throw new Error("The export was removed.");
  return found.download_url;
}

function next(text, href) {
  return h("p", { class: "actions" }, h("a", { class: "button", href }, text));
}

function sum(counts) {
  return Object.values(counts).reduce((total, count) => total + count, 0);
}
