// Make a folder others can load out of a completed training, watch it being made and verified, and have it.
//
// The address says what is chosen (`job`, `format`) and which export is being made (`making`), so that a reload goes on.

import * as api from "../api.js";
import { arrange, h, replace, setText } from "../dom.js";
import { bytes, number, plural } from "../format.js";
import { lookups } from "../gather.js";
import { follow } from "../live.js";
import { attempt, confirm, say } from "../notices.js";
import { facts } from "../parts/pieces.js";
import { badge, isLive, methodOf, nameOf, progressBar, progressed, saying } from "../words.js";
import "../elements/time-ago.js";

export const title = "Exports";

const HEARD = [
  "job.submitted", "job.waiting", "job.placed", "job.started", "job.phase_entered", "job.progressed", "job.interrupted",
  "job.cancel_requested", "job.completed", "job.failed", "job.cancelled",
];
const NOT_BUILT = "Not available: this version does not build it. Export as huggingface or lora_adapter, and convert the folder with that format's own tools.";
const FORMATS = {
  huggingface: { label: "Hugging Face", text: "A whole model folder for transformers. Adapters are merged into the weights, so that it loads by itself." },
  lora_adapter: { label: "LoRA adapter", text: "Only the adapters, for peft: small, and loaded on top of the base model." },
  onnx: { label: "ONNX", text: NOT_BUILT },
  tflite: { label: "TFLite", text: NOT_BUILT },
};
const BUILT = ["huggingface", "lora_adapter"];
const CHECKS = { // what the export's job compared, in words
  rows: "Questions asked", tokens: "Tokens compared", reloaded_vs_trained: "Largest difference after loading it again",
  merged_vs_trained: "Largest difference after merging", adapters_effect: "What the adapters change",
};

export function render(root, { query, set }) {
  const trainings = new Map(); // id → summary of a completed training
  let exports = [];
  let made = null; // the job of the export that is being made or was just made
  const look = lookups(take, dismiss);

  const training = h("select", { id: "training", required: true, onchange: () => choose({ job: training.value }) });
  const formats = h("fieldset", { class: "formats" }, h("legend", {}, "Format"), Object.keys(FORMATS).map(formatOf));
  const card = h("input", { type: "checkbox", id: "card", checked: true, "aria-describedby": "card-text" });
  const start = h("button", { class: "primary", disabled: true }, "Make the export"); // until a training can be chosen
  const form = h(
    "form", { class: "making", onsubmit: make },
    h("div", { class: "field" }, h("label", { for: "training" }, "Training"), training),
    formats,
    h("div", { class: "option" }, card, h("label", { for: "card" }, "Write a model card"), h("p", { id: "card-text", class: "note" }, "A README beside the weights: data, settings, results and how to load it.")),
    h("div", { class: "actions" }, start),
  );
  const none = h("p", { hidden: true }, "Only a completed training can be exported, and there is none yet. ", h("a", { href: "#/train" }, "Start one"), ".");
  const progress = h("section", { class: "card progress", "aria-label": "The export being made", hidden: true });
  const count = h("span", { class: "note" });
  const list = h("ul", { class: "rows", "aria-label": "Exports, newest first" });
  const loading = h("p", { class: "loading" }, "Loading …");
  const empty = h("div", { class: "empty", hidden: true }, h("h2", {}, "No export yet"), h("p", {}, "Choose a completed training above: its best checkpoint becomes a folder that others can load, checked by loading it again."));
  root.append(
    h("div", { class: "head" }, h("h1", {}, "Exports")), progress,
    h("section", { class: "card" }, h("h2", {}, "Make an export"), form, none),
    h("div", { class: "head list-head" }, h("h2", {}, "What there is"), count), loading, list, empty,
  );

  // What an export's job says of its verification is looked up once its row is seen.
  const seen = new IntersectionObserver((entries) => entries.filter(({ isIntersecting }) => isIntersecting).forEach(({ target }) => {
    seen.unobserve(target);
    verify(target);
  }));
  const stopListening = follow({ types: HEARD, load, onEvents: (events) => events.forEach(({ event }) => hear(event)) });
  return () => {
    stopListening();
    seen.disconnect();
  };

  async function load(isNewest) {
    const [found, listed] = await Promise.all([api.get("/experiments", { status: "completed", limit: 1000 }), api.get("/export/list")]);
    if (!isNewest()) return;
    trainings.clear();
    found.forEach((each) => trainings.set(each.experiment_id, each));
    ({ exports } = listed);
    drawForm();
    if (query.get("making")) await look(query.get("making"));
    if (isNewest()) drawList();
  }

  function take(job) {
    if (job.job_id !== query.get("making")) return;
    made = job;
    drawMade();
  }

  // -- making one

  function formatOf(format) {
    const { label, text } = FORMATS[format];
    const box = h("input", { type: "radio", name: "format", value: format, id: format, "aria-describedby": `${format}-text`, disabled: !BUILT.includes(format), onchange: () => choose({ format }) });
    return h("div", { class: "option", data: { format } }, box, h("label", { for: format }, label), h("p", { id: `${format}-text`, class: "note" }, text));
  }

  function choose(changes) {
    set(changes);
    drawForm();
  }

  function drawForm() {
    none.hidden = trainings.size > 0;
    form.hidden = trainings.size === 0;
    const wanted = training.value || query.get("job"); // a training that completes meanwhile does not change the choice
    const isMissing = wanted && !trainings.has(wanted);
    const options = [...trainings.values()].map((each) => h("option", { value: each.experiment_id, selected: each.experiment_id === wanted }, `${nameOf(each)} · ${methodOf(each)} · ${each.model_name} · ${each.experiment_id.slice(-6)}`));
    replace(training, isMissing && h("option", { value: "", selected: true }, "The one in the address is not completed or not here: choose another"), options);
    drawFormats(trainings.get(training.value));
  }

  function drawFormats(chosen) {
    const hasAdapters = !chosen || methodOf(chosen) !== "full";
    const adapters = formats.querySelector("#lora_adapter");
    adapters.disabled = !hasAdapters;
    setText(formats.querySelector("#lora_adapter-text"), hasAdapters ? FORMATS.lora_adapter.text : "Not available: this training was a full fine-tune and has no adapters. Export it as Hugging Face.");
    const wanted = query.get("format") === "lora_adapter" && hasAdapters ? "lora_adapter" : "huggingface";
    formats.querySelector(`#${wanted}`).checked = true;
    for (const option of formats.querySelectorAll(".option")) option.classList.toggle("off", option.querySelector("input").disabled);
    start.disabled = !chosen;
  }

  function make(event) {
    event.preventDefault();
    const format = formats.querySelector("input:checked").value;
    const isMerged = format === "huggingface" && methodOf(trainings.get(training.value)) !== "full";
    attempt(start, async () => {
      const { job_id } = await api.submit({ kind: "export", job_id: training.value, export_format: format, generate_model_card: card.checked, merge_adapters: isMerged });
      set({ making: job_id });
      await look(job_id);
      progress.scrollIntoView({ block: "nearest" });
    });
  }

  function dismiss() {
    set({ making: "" });
    made = null;
    drawMade();
  }

  function hear(event) {
    if (made?.job_id === event.job_id) {
      if (event.type === "job.progressed") progressed(made, event);
      else look.quietly(event.job_id);
      drawMade();
    }
    if (event.type === "job.completed" && ["export", "finetune"].includes(event.result.kind)) stopListening.reload();
  }

  // Drawn anew only when the status changes, so that the buttons keep the focus.
  function drawMade() {
    progress.hidden = !made;
    if (!made) return;
    const isEnding = Boolean(made.cancel_requested_at);
    const state = `${made.job_id} ${made.status} ${isEnding}`;
    if (progress.dataset.state !== state) {
      if (progress.dataset.state?.startsWith(made.job_id) && !isLive(made)) say(made.status === "completed" ? "The export is made and verified." : `The export is ${made.status}.`);
      progress.dataset.state = state;
      replace(progress, h("div", { class: "card-head" }, h("h2", {}, `${FORMATS[made.spec.export_format].label} of ${trainingName(made.spec.job_id)}`), badge(made.status), h("div", { class: "actions last" }, buttonsOf(made))), h("div", { class: "how" }));
    }
    const how = progress.querySelector(".how");
    if (made.status === "completed") replace(how, h("p", {}, made.result.message), checksOf(made.result.verification));
    else if (made.status === "failed") replace(how, h("p", { class: "error" }, made.failure_detail), h("p", { class: "note" }, "The training is untouched: you can try again below."));
    else replace(how, isLive(made) && progressBar(made), h("p", { class: "note" }, saying(made) || (made.status === "running" ? "starts" : "waits for its turn")));
  }

  function buttonsOf(job) {
    if (!isLive(job)) return [job.status === "completed" && downloadLink(job.job_id), h("button", { type: "button", onclick: dismiss }, "Close")];
    if (job.cancel_requested_at) return [];
    const button = h("button", { type: "button", onclick: () => attempt(button, () => api.cancel(job.job_id)) }, "Cancel");
    return [button];
  }

  // -- what there is

  function drawList() {
    loading.hidden = true;
    empty.hidden = exports.length > 0;
    setText(count, exports.length ? plural(exports.length, "export") : "");
    const rows = new Map([...list.children].map((row) => [row.dataset.id, row]));
    const wanted = exports.map((each) => rows.get(each.export_id) ?? rowOf(each));
    arrange(list, wanted);
    if (made && !isLive(made)) progress.dataset.state = ""; // its download is known now
    drawMade();
  }

  function rowOf(each) {
    const name = trainingName(each.job_id);
    const row = h(
      "li", { class: "row export", data: { id: each.export_id } },
      h("div", { class: "what" }, h("b", {}, FORMATS[each.export_format]?.label ?? each.export_format), h("span", { class: "note" }, "of ", h("a", { href: `#/job/${each.job_id}` }, name))),
      h("div", { class: "checked note" }, "…"),
      h("div", { class: "figures note" }, h("span", {}, bytes(each.file_size_mb * 2 ** 20)), h("time-ago", { datetime: each.created_at })),
      h("div", { class: "actions" }, downloadLink(each.export_id), removeButton(each, name)),
    );
    seen.observe(row);
    return row;
  }

  async function verify(row) {
    const cell = row.querySelector(".checked");
    try {
      const { result } = await api.job(row.dataset.id);
      replace(cell, summaryOf(result.verification));
      cell.title = result.message;
    } catch {
      setText(cell, "how it was verified is not known any more");
    }
  }

  function downloadLink(id) {
    const found = exports.find(({ export_id }) => export_id === id);
    if (!found) return null;
    const label = `Download ${FORMATS[found.export_format]?.label ?? found.export_format} of ${trainingName(found.job_id)}`;
    return h("a", { class: "button", href: found.download_url, download: "", "aria-label": label }, "Download");
  }

  function removeButton(each, name) {
    const button = h("button", { type: "button", class: "quiet", "aria-label": `Delete the export of ${name}` }, "Delete");
    button.addEventListener("click", async () => {
      const text = "Its files are removed; the training stays and can be exported again.";
      if (!(await confirm({ title: `Delete this export of ${name}?`, text, action: "Delete the export" }))) return;
      const done = await attempt(button, () => api.remove(`/export/${encodeURIComponent(each.export_id)}`));
      if (!done) return;
      exports = exports.filter((other) => other !== each);
      if (made?.job_id === each.export_id) dismiss();
      drawList();
      say("The export is deleted.");
    });
    return button;
  }

  function trainingName(id) {
    const known = trainings.get(id);
    return known ? nameOf(known) : id.slice(-6);
  }
}

function checksOf(verification) {
  const known = Object.keys(CHECKS).filter((name) => name in verification);
  return facts(known.map((name) => [CHECKS[name], number(verification[name])]));
}

function summaryOf({ rows, tokens, reloaded_vs_trained: difference }) {
  const answers = difference === 0 ? "answers exactly as trained" : `answers differ by at most ${number(difference)}`;
  return [h("span", { class: "verified" }, "✓ verified"), ` ${answers} (${number(rows)} questions, ${number(tokens)} tokens)`];
}
