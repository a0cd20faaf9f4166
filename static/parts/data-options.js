// The options of what is done with data: a form drawn from the schema of a kind of job, in words for people.

import * as api from "../api.js";
import { h, setText } from "../dom.js";
import { number } from "../format.js";
import { modelChoice } from "./models.js";
import { schemaForm } from "./schema-form.js";

const WORDS = {
  output_dir: { title: "Name", description: "The dataset is kept under it; a slash makes folders." },
  task: {
    title: "Task", description: "What the model is to answer when it sees a frame.",
    options: { classify: "classify: the labels alone", describe: "describe: counts and places in a sentence", detect: "detect: a list of labels and boxes", point: "point: a place inside each object", polygon: "polygon: the outline of each object" },
  },
  model_name: { title: "Model to train", description: "The answer then says what suits that one. A known name, a folder, or a repository of the model hub; empty: any." },
  target_format: { title: "Format", description: "How the rows lie on disk.", options: { llava: "LLaVA: conversations", huggingface: "Hugging Face: an Arrow folder", coco: "COCO: instances" }, "x-advanced": true },
  embed_images: { title: "Pictures in the table", description: "Of Hugging Face: they travel with it. Else it names files beside it.", "x-advanced": true },
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

// → { form, element } for some fields of a kind, filled from the address; with shares it says whether they add up.
export async function optionsOf(kind, only, { query = new URLSearchParams(), onInput = () => {} } = {}) {
  const [schema, { models }] = await Promise.all([api.get(`/schemas/${kind}`), only.includes("model_name") ? api.get("/models").catch(() => ({})) : {}]);
  const words = Object.fromEntries(only.map((name) => [name, { ...WORDS[name], "x-group": "options" }]));
  const sum = h("p", { class: "sum" });
  const form = schemaForm(schema, { words, only, onInput: () => (showSum(form, only, sum), onInput()) });
  for (const [name, text] of Object.entries(BEGIN_WITH)) if (only.includes(name)) form.write(name, text);
  form.begin();
  form.restore(query);
  showSum(form, only, sum);
  return { form, element: h("div", { class: "data-options" }, form.group("options"), models && modelChoice(form.control("model_name"), models), only.includes("train_ratio") && sum) };
}

// The name itself, or with the first number behind it that is free.
export function freeName(stem, isFree) {
  let name = stem;
  for (let number = 2; !isFree(name); number++) name = `${stem}-${number}`;
  return name;
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
