// What can be said of trainings side by side, without drawing any of it: which is best, what differs, the table as CSV.
//
// A run here is { name, isLive, config, eval_loss, eval_accuracy, train_loss }, its values null where there is none.

import { asWritten, number, percent } from "./format.js";

const TELLS_NOTHING = new Set(["output_dir", "priority", "device", "save_steps", "logging_steps", "save_total_limit"]); // of the quality
const MOST_TOLD = 4;
const LONG_NAME = 48;

export function labelOf(setting) {
  return setting.replaceAll("_", " ").replace("lora", "LoRA").replace("qLoRA", "QLoRA").replace(/\bfp16\b/, "FP16").replace(/\bbf16\b/, "BF16");
}

// Names of the settings that these configurations do not all have alike.
export function differing(configs) {
  const names = [...new Set(configs.flatMap(Object.keys))];
  return names.filter((name) => new Set(configs.map((config) => asWritten(config[name]))).size > 1);
}

// → sentences, the first of which says it all.
export function verdict(given) {
  const runs = given.map((run) => ({ ...run, name: `“${short(run.name)}”` }));
  const measured = runs.filter(({ eval_loss }) => eval_loss !== null).sort((one, other) => one.eval_loss - other.eval_loss);
  const sentences = measured.length ? [ranking(measured), caution(measured), accuracies(measured), ...settings(measured)] : withoutEvaluation(runs);
  return [...sentences, unmeasured(runs, measured), unfinished(runs)].filter(Boolean);
}

const short = (name) => (name.length > LONG_NAME ? `${name.slice(0, LONG_NAME - 1)}…` : name);

function ranking([best, second]) {
  if (!second) return `Only ${best.name} was evaluated: eval loss ${number(best.eval_loss)}. There is nothing to measure it against.`;
  if (best.eval_loss === second.eval_loss) return `${best.name} and ${second.name} are equally good by eval loss: ${number(best.eval_loss)}.`;
  return `${best.name} is best by eval loss: ${number(best.eval_loss)}, ${share(best.eval_loss, second.eval_loss)} below ${second.name} (${number(second.eval_loss)}).`;
}

function share(less, more) {
  const percentage = (100 * (more - less)) / Math.abs(more);
  return `${percentage < 1 ? "less than 1" : percentage > 99 ? "more than 99" : Math.round(percentage)} %`;
}

function accuracies(measured) {
  const known = measured.filter(({ eval_accuracy }) => eval_accuracy !== null);
  if (known.length < 2) return null;
  const highest = Math.max(...known.map(({ eval_accuracy }) => eval_accuracy));
  const leaders = known.filter(({ eval_accuracy }) => eval_accuracy === highest);
  if (leaders.length === known.length) return `All reach the same accuracy: ${percent(highest)}.`;
  if (leaders.length > 1) return `The highest accuracy, ${percent(highest)}, is reached by ${listed(leaders.map(({ name }) => name))}.`;
  const next = Math.max(...known.filter((run) => run !== leaders[0]).map(({ eval_accuracy }) => eval_accuracy));
  const leads = leaders[0] === measured[0] ? "It also has the highest accuracy" : `By accuracy ${leaders[0].name} is ahead`;
  return `${leads}: ${percent(highest)} against ${percent(next)}.`;
}

function settings([best, second]) {
  if (!second) return [];
  const names = differing([best.config, second.config]).filter((name) => !TELLS_NOTHING.has(name));
  if (names.length === 0) return [`The settings of ${best.name} and ${second.name} that matter are the same.`];
  const first = names.slice(0, MOST_TOLD).map((name) => `${labelOf(name)} (${told(best.config[name])} against ${told(second.config[name])})`);
  const rest = names.length - first.length;
  return [`What ${best.name} and ${second.name} differ in: ${listed(rest ? [...first, `${rest} more`] : first)}.`];
}

const told = (value) => (value === null || value === undefined ? "none" : asWritten(value));

function caution(measured) {
  const data = new Set(measured.map(({ config }) => config.val_data_path));
  return data.size > 1 ? "Careful: they were evaluated on different data, so these losses do not compare." : null;
}

function withoutEvaluation(runs) {
  const trained = runs.filter(({ train_loss }) => train_loss !== null).sort((one, other) => one.train_loss - other.train_loss);
  const first = "None of them was evaluated, so none is called best: give a training validation data to measure it.";
  return trained.length ? [first, `${trained[0].name} has the lowest train loss (${number(trained[0].train_loss)}), which only says how well it fits what it saw.`] : [first];
}

function unmeasured(runs, measured) {
  const names = runs.filter((run) => !measured.includes(run)).map(({ name }) => name);
  return measured.length && names.length ? `No evaluation ran in ${listed(names)}.` : null;
}

function unfinished(runs) {
  const names = runs.filter(({ isLive }) => isLive).map(({ name }) => name);
  return names.length ? `${listed(names)} ${names.length === 1 ? "has" : "have"} not ended yet: this may change.` : null;
}

export function listed(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

// Rows of cells as a CSV file. A text that a spreadsheet would take for a formula gets a quote before it.
export function csvOf(rows) {
  const cell = (value) => {
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value ?? "");
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}
