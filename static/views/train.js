// A new training: a preset, a model, data, the settings drawn from the schema, and beside them what will run.
//
// The address holds what differs from where the form began: ?preset=…, or ?from=<job> for "train again", the dataset
// as ?data=…, then each changed setting by its name. So a reload or a colleague finds the same form.

import * as api from "../api.js";
import { h, replace, setText } from "../dom.js";
import { number, plural } from "../format.js";
import { keys } from "../keyboard.js";
import { gather } from "../gather.js";
import { follow } from "../live.js";
import { attempt, say } from "../notices.js";
import { titleOf } from "../words.js";
import { datasetAddress, splitBar, validationBadge } from "../parts/dataset-parts.js";
import { describe, modelChoice } from "../parts/models.js";
import { card, copyButton, facts } from "../parts/pieces.js";
import { previewOf } from "../parts/preview.js";
import { schemaForm } from "../parts/schema-form.js";
import { trainingPlan } from "../parts/training-plan.js";

export const title = "New training";

const WORDS = {
  experiment_name: { title: "Name", description: "How the experiment is called in lists and curves." },
  tags: { title: "Tags", description: "To find it by, such as: first try, 7b." },
};
const MOVES_A_PLACE = ["job.submitted", "job.placed", "job.started", "job.completed", "job.failed", "job.cancelled", "job.paused", "job.interrupted"];
const DATA = ["config.train_data_path", "config.val_data_path"];
const SETTINGS = [ // what the plan is made of
  "model_name", "val_data_path", "use_lora", "use_qlora", "lora_rank", "lora_alpha", "batch_size", "gradient_accumulation_steps", "num_epochs", "max_steps",
  "learning_rate", "eval_steps", "save_steps", "logging_steps", "fp16", "bf16",
];
const AGAIN = ""; // the value of the choice that is no preset but the earlier run
const MOST_ASKED = 100; // of a status: whoever waits behind so many waits long
const USES_A_MODEL = ["finetune", "evaluate", "generate"];

export function render(root, params) {
  const abort = new AbortController();
  let stop = () => {};
  root.append(h("div", { class: "head" }, h("h1", {}, "New training")), h("p", { class: "loading" }, "Loading …"));
  load(params.query.get("from"), abort.signal).then(
    (known) => {
      if (abort.signal.aborted) return;
      root.lastChild.remove();
      stop = known.datasets.length ? show(root, params, known) : nothing(root);
    },
    (error) => abort.signal.aborted || root.lastChild.replaceWith(failure(error)),
  );
  return () => {
    abort.abort();
    stop();
  };
}

async function load(from, signal) {
  const [schema, presets, models, datasets, earlier] = await Promise.all([
    api.get("/schemas/finetune", {}, signal), api.get("/train/presets", {}, signal), api.get("/models", {}, signal),
    api.get("/data/datasets", {}, signal), from && trainingOf(from, signal),
  ]);
  return { schema, presets: presets.presets, models: models.models, datasets: datasets.datasets, earlier };
}

// The job to train again; without it the form begins as any other.
async function trainingOf(id, signal) {
  try {
    const job = await api.job(id, signal);
    return job.kind === "finetune" ? job : null;
  } catch (error) {
    if (error.status !== 404) throw error;
    say("The training to run again was removed.", "bad");
    return null;
  }
}

function failure(error) {
  const again = h("button", { type: "button", onclick: () => dispatchEvent(new Event("hashchange")) }, "Try again"); // draws the view anew
  return h("div", { class: "empty" }, h("h2", {}, "The form could not be drawn"), h("p", {}, error.message), again);
}

function nothing(root) {
  root.append(h(
    "div", { class: "empty" }, h("h2", {}, "No dataset yet"),
    h("p", {}, "A training needs data: upload a SAM2 export, and the page converts, checks and splits it."),
    h("p", { class: "actions" }, h("a", { class: "button primary", href: "#/data" }, "Prepare data")),
  ));
  return () => {};
}

function show(root, { query, set }, { schema, presets, models, datasets, earlier }) {
  const form = schemaForm(schema, { words: WORDS, onInput });
  const data = h("select", { id: "data", name: "data", onchange: () => choose(datasets.find(({ name }) => name === data.value)) });
  const aboutModel = h("p", { class: "note" });
  const aboutData = h("div", { class: "about" });
  const aboutPreset = h("p", { class: "note" });
  const start = h("button", { class: "primary", "aria-keyshortcuts": "Control+Enter", "aria-describedby": "refusal" }, "Start training");
  const refusal = h("div", { id: "refusal" });
  const plan = h("div", { class: "plan" });
  const look = h("button", { type: "button", onclick: onLook }, "Show what is trained");
  const looked = h("div", { class: "looked" });
  const places = h("div", { class: "places" });
  const fits = trainingPlan({ values: form.values, check, apply, refused: ({ errors }) => form.show(errors) });
  const request = h("pre", { tabindex: 0, "aria-label": "The request" });

  let based = null; // the dataset whose paths the form began with
  let runners = null; // not known yet
  let busy = []; // jobs with a model that have a place, or wait for one

  const paths = h("div", { class: "fields wide" }, DATA.map(form.element)); // the select above says them, seldom a person

  const element = h(
    "form", { class: "train", novalidate: true, onsubmit: onStart },
    h(
      "div", { class: "choices" },
      card("Begin with", presetChoice(), aboutPreset),
      card(
        "Model and data",
        modelChoice(form.control("config.model_name"), models),
        h(
          "div", { class: "fields wide" },
          h("div", { class: "field" }, form.element("config.model_name"), aboutModel),
          h(
            "div", { class: "field" }, h("label", { for: "data" }, "Data"), data,
            h("p", { class: "note" }, "A split has rows to learn from and rows to judge by. ", h("a", { href: "#/data" }, "Prepare more data")),
          ),
        ),
        aboutData,
        form.group("model and data"), h("details", {}, h("summary", {}, "Paths of the data"), paths),
      ),
      card("Name", h("div", { class: "fields wide" }, form.element("experiment_name"), form.element("tags"))),
      form.groups.slice(1).map((name) => card(name[0].toUpperCase() + name.slice(1), form.group(name))),
      card("What is trained", h("p", { class: "note" }, "The first and the longest rows as the model gets them; no weights are loaded for it."), h("div", { class: "actions" }, look), looked),
    ),
    h(
      "aside", { class: "card", "aria-labelledby": "plan-title" },
      h("h2", { id: "plan-title" }, "What will run"), plan, places, fits.element, refusal,
      h("div", { class: "actions" }, start, h("span", { class: "note keys" }, h("kbd", {}, "Ctrl"), " ", h("kbd", {}, "Enter"))),
      h("details", {}, h("summary", {}, "As a request"), request, copyButton("Copy", () => request.textContent, markRequest)),
    ),
  );
  root.append(element);
  begin();

  const isStarting = (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && !document.querySelector("dialog[open]");
  const onKey = (event) => isStarting(event) && element.requestSubmit();
  addEventListener("keydown", onKey);
  const stopKeys = keys({ "Ctrl+Enter": ["Start the training", () => {}] });
  const lookAgain = gather(loadPlaces);
  const stopListening = follow({ types: MOVES_A_PLACE, load: loadPlaces, onEvents: lookAgain });
  return () => {
    removeEventListener("keydown", onKey);
    lookAgain.stop();
    stopKeys();
    stopListening();
  };

  // -- where the form begins

  // Fills the form with its beginning, then with what the address says differs from it.
  function begin() {
    fill();
    form.restore(query);
    draw();
  }

  function fill() {
    form.fill(isAgain() ? earlier.spec : { config: { model_name: models[0]?.name, ...preset()?.config } });
    const named = datasets.find(({ name }) => name === query.get("data"));
    based = null;
    if (named || !form.text("config.train_data_path")) take(named ?? datasets.find(({ split }) => split) ?? datasets[0]);
    form.begin();
  }

  // Another preset, or the earlier run: its settings in the place of all others; what the run is about stays.
  function use(name) {
    const setsModel = name === AGAIN || presets.find((preset) => preset.name === name).config.model_name;
    const kept = [...DATA, "experiment_name", "tags", ...(setsModel ? [] : ["config.model_name"])].map((path) => [path, form.text(path)]);
    const begins = name === AGAIN ? { from: earlier.job_id, preset: null } : { from: null, preset: name };
    set({ ...begins, data: chosenData()?.name });
    fill();
    kept.forEach(([path, text]) => form.write(path, text));
    onInput();
  }

  function presetChoice() {
    const again = earlier ? [[AGAIN, `Again: ${titleOf(earlier)}`]] : [];
    const options = [...again, ...presets.map(({ name, title }) => [name, title])];
    const chosen = isAgain() ? AGAIN : preset()?.name;
    return h("div", { class: "pills", role: "radiogroup", "aria-label": "Preset" }, options.map(([name, text]) => h(
      "label", {}, h("input", { type: "radio", name: "preset", value: name, checked: name === chosen, onchange: () => use(name) }), h("span", {}, text),
    )));
  }

  function isAgain() {
    return Boolean(earlier && query.get("from"));
  }

  function preset() {
    return isAgain() ? null : presets.find(({ name }) => name === (query.get("preset") ?? presets[0]?.name));
  }

  // -- data

  function take(dataset) {
    based = dataset;
    form.write("config.train_data_path", dataset.split?.train_path ?? dataset.data_path);
    form.write("config.val_data_path", dataset.split?.val_path ?? "");
  }

  function choose(dataset) {
    if (!dataset) return draw();
    take(dataset);
    form.begin(DATA);
    onInput();
  }

  function learntFrom() {
    const train = form.text("config.train_data_path");
    return datasets.find(({ split, data_path }) => train === (split?.train_path ?? data_path));
  }

  // The dataset whose paths both stand in the form.
  function chosenData() {
    const dataset = learntFrom();
    return dataset && form.text("config.val_data_path") === (dataset.split?.val_path ?? "") ? dataset : null;
  }

  // -- what is shown of it

  function onInput() {
    set({ ...form.changes(), data: based?.name });
    draw();
  }

  function draw() {
    const dataset = learntFrom();
    const config = Object.fromEntries(SETTINGS.map((name) => [name, form.value(`config.${name}`)]));
    const method = config.use_qlora ? "qlora" : config.use_lora ? "lora" : "full";
    drawData(chosenData());
    setText(aboutModel, describe(models.find(({ name }) => name === config.model_name)));
    setText(aboutPreset, preset()?.description ?? (earlier ? `The settings of ${titleOf(earlier)}, to be changed or run again.` : ""));
    for (const name of ["lora_rank", "lora_alpha", "lora_dropout"]) form.element(`config.${name}`).hidden = method === "full";
    drawPlan(config, method, dataset?.split?.train_samples ?? dataset?.num_samples);
    drawPlaces();
    setText(request, curl(form.values()));
    fits.changed();
  }

  function drawData(dataset) {
    const options = datasets.map((each) => h("option", { value: each.name }, `${each.name} – ${rowsOf(each)}`));
    if (!data.options.length) data.append(...options, h("option", { value: "", hidden: true }, "other paths"));
    data.value = dataset?.name ?? "";
    replace(aboutData, dataset && aboutDataset(dataset, datasets, choose), dataset?.validation?.result === "failed" && invalid(dataset));
  }

  function invalid({ name, validation }) {
    const allow = form.control("config.allow_invalid_data");
    const text = `The last validation of ${name} failed with ${plural(validation.num_errors, "error")}`;
    if (allow.checked) return h("p", { class: "callout" }, `${text}; it is used all the same.`);
    const button = h("button", { type: "button", onclick: () => (allow.click(), data.focus()) }, "Train on it all the same");
    return h("div", { class: "callout", data: { tone: "bad" } }, h("p", {}, `${text}, so the service will refuse it. Look at the `, h("a", { href: datasetAddress(name) }, "findings"), " and mend it first, or:"), button);
  }

  function drawPlan(config, method, rows) {
    const batch = config.batch_size * config.gradient_accumulation_steps;
    const perEpoch = Math.ceil(rows / batch);
    const total = Math.min(perEpoch * config.num_epochs, config.max_steps ?? Infinity);
    const planned = {
      Method: { qlora: "QLoRA: adapters on a 4-bit base", lora: `LoRA: adapters of rank ${config.lora_rank}`, full: "Full: every weight" }[method],
      Rows: rows ? `${number(rows)}${config.num_epochs ? `, seen ${plural(config.num_epochs, "time")}` : ""}` : "not known for this path",
      Batch: batch ? `${number(config.batch_size)} × ${number(config.gradient_accumulation_steps)} = ${plural(batch, "row")} an update` : "–",
      Steps: total ? `${number(total)} in all, ${number(perEpoch)} an epoch` : "–",
      Judged: config.val_data_path ? `every ${plural(config.eval_steps, "step")} and at the end` : "not: there is no validation data",
      Saved: `every ${plural(config.save_steps, "step")} and at the end`,
    };
    replace(
      plan,
      facts(Object.entries(planned)),
      warnings(config, method, preset(), total).map((text) => h("p", { class: "callout" }, text)),
    );
  }

  // -- where it would run

  async function loadPlaces() {
    const pages = ["running", "queued", "pending"].map((status) => api.get("/jobs", { status, limit: MOST_ASKED }));
    [runners, ...busy] = await Promise.all([api.get("/runners"), ...pages]);
    busy = busy.flatMap(({ jobs }) => jobs).filter(({ kind }) => USES_A_MODEL.includes(kind));
    drawPlaces();
  }

  function drawPlaces() {
    if (runners) replace(places, ...whereItRuns(runners, busy, form.value("config.device"), form.value("config.num_processes") ?? 1));
  }

  function markRequest() {
    getSelection().selectAllChildren(request);
    return "The text is marked: copy it with the keyboard.";
  }

  // -- start

  function check() {
    if (form.check()) return true;
    say("Some settings need another value.", "bad");
    return false;
  }

  // A change that the plan offers.
  function apply(config) {
    for (const [name, value] of Object.entries(config)) form.write(`config.${name}`, String(value));
    onInput();
    say("The change is in the form: plan it again to see what it takes.");
  }

  function onStart(event) {
    event.preventDefault();
    if (start.disabled) return;
    replace(refusal);
    if (!check()) return;
    attempt(start, () => api.post("/train/start", form.values()).then(
      ({ job_id, warnings }) => {
        say(["The training is recorded.", ...warnings].join(" "));
        location.hash = `#/job/${job_id}`;
      },
      (problem) => refuse(refusal, problem),
    ));
  }

  function refuse(place, problem) {
    const errors = problem.errors ?? [];
    const homeless = form.show(errors);
    const messages = errors.length ? homeless.map(({ message }) => message) : [problem.message];
    say(problem.message, "unseen");
    replace(place, messages.map((message) => h("p", { class: "callout", data: { tone: "bad" } }, message)));
  }

  // -- what is trained

  function onLook() {
    if (!form.check()) return say("Some settings need another value.", "bad");
    replace(looked, h("p", { class: "note" }, "Reading the rows …"));
    attempt(look, () => api.post("/train/preview", form.values()).then(
      (answer) => replace(looked, ...(answer.status_url ? [h("p", {}, "It takes longer: ", h("a", { href: `#/job/${answer.job_id}` }, "see the job"), ".")] : previewOf(answer))),
      (problem) => refuse(looked, problem),
    ));
  }
}

function rowsOf({ split, num_samples }) {
  return split ? `${number(split.train_samples)} train, ${number(split.val_samples)} val` : `${plural(num_samples, "row")}, not split`;
}

function aboutDataset(dataset, datasets, choose) {
  const about = h("p", { class: "about-data" }, validationBadge(dataset.validation), dataset.task && h("span", { class: "tag" }, dataset.task), h("a", { href: datasetAddress(dataset.name) }, "Look at it"));
  if (dataset.split) return [splitBar(dataset.split), about];
  const divided = datasets.find(({ split }) => split?.source === dataset.data_path);
  const remedy = divided
    ? h("button", { type: "button", onclick: () => choose(divided) }, `Use its split ${divided.name}`)
    : h("a", { class: "button", href: datasetAddress(dataset.name) }, "Split it first");
  return [about, h("div", { class: "callout" }, h("p", {}, "It is not split: all its rows are learnt from, and nothing judges the run."), remedy)];
}

// Settings that are allowed and rarely meant.
function warnings(config, method, preset, total) {
  const found = [];
  if (config.learning_rate > 1e-3) found.push(`A learning rate of ${config.learning_rate} is above 1e-3, where training usually diverges.`);
  if (method !== "full" && config.lora_alpha < config.lora_rank) found.push("LoRA alpha is below the rank, which scales the adapters down: it is usually the rank or twice the rank.");
  if (preset?.needs_validation_data && !config.val_data_path) found.push(`${preset.title} is judged on validation data: choose a dataset that is split.`);
  if (config.val_data_path && config.eval_steps >= total) found.push(`The run has ${plural(total, "step")}, so it is judged once, at its end. Evaluate more often to see when it is best.`);
  if (config.logging_steps >= total) found.push(`The run has ${plural(total, "step")}: report more often to see a curve.`);
  if (config.fp16 && config.bf16) found.push("fp16 and bf16 cannot both be on: leave both on automatic to take what the device does best.");
  return found;
}

// The devices that would take it, how many places are free, and whether it will wait.
function whereItRuns(runners, busy, wish, processes) {
  const alive = runners.filter((runner) => runner.alive && !runner.stopping);
  if (!alive.length) return [h("h3", {}, "Where"), h("p", { class: "callout" }, "No runner is alive: it will wait until one starts.")];
  const all = alive.flatMap(({ runner_id, devices }) => devices.map((device) => ({ ...device, runner_id }))).filter(({ slots }) => slots.gpu > 0);
  const cuda = all.filter(({ device_id }) => device_id.startsWith("cuda"));
  const cpu = all.filter((device) => !cuda.includes(device));
  const fitting = wish === "cpu" ? cpu : cuda.length ? cuda : cpu;
  const rooms = fitting.map((device) => [device, device.slots.gpu - busy.filter((job) => job.runner_id === device.runner_id && (job.device ?? "").split(",").includes(device.device_id)).length]);
  const waiting = busy.filter(({ status }) => status === "pending").length;
  const wanted = fitting === cuda ? processes : 1; // a GPU of one host for each; a CPU is shared
  const most = Math.max(0, ...alive.map(({ runner_id }) => fitting.filter((device) => device.runner_id === runner_id).length));
  const isFree = !waiting && alive.some(({ runner_id }) => rooms.filter(([device, free]) => device.runner_id === runner_id && free > 0).length >= wanted);
  return [
    h("h3", {}, "Where"),
    h("ul", {}, rooms.map(([{ device_id, name, runner_id, slots }, free]) => h(
      "li", {}, h("span", {}, `${device_id} of ${runner_id}`, h("span", { class: "note" }, ` ${name}`)), h("span", { class: "note" }, `${Math.max(0, free)} of ${plural(slots.gpu, "place")} free`),
    ))),
    h("p", { class: rooms.length ? "note" : "callout" }, !rooms.length ? "No device of a living runner takes it: it will wait." : most < wanted ? `It asks for ${wanted} GPUs of one host, and the largest has ${most}: it will wait.` : isFree ? "It starts at once." : waiting ? `It waits behind ${plural(waiting, "job")}.` : "It waits until a place is free."),
    wish === "cuda" && !cuda.length && h("p", { class: "callout" }, "No runner has a GPU: only a small model may use the CPU in its place."),
  ];
}

function curl(body) {
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", String.raw`'\''`);
  return `curl -X POST ${location.origin}/api/train/start \\\n  -H 'content-type: application/json' \\\n  -d '${quoted}'`;
}
