// What can be done with a dataset: train on it, split it, validate it, read the report. Used by the list and by one.
//
// `leaving` is the signal that the view is left: its job goes on, nobody waits for it any more.

import * as api from "../api.js";
import { h, setText } from "../dom.js";
import { follow } from "../live.js";
import { attempt, confirm, say } from "../notices.js";
import { freeName, optionsOf, SPLIT_FIELDS, sumsToOne } from "./data-options.js";

export function useLink({ name }, tone = "") {
  return h("a", { class: `button ${tone}`, data: { action: "use" }, href: `#/train?data=${encodeURIComponent(name)}`, "aria-label": `Train on ${name}` }, "Train on it");
}

export function growLink({ name }) {
  return h("a", { class: "button", data: { action: "grow" }, href: `#/data?add_to=${encodeURIComponent(name)}` }, "Add an export to it");
}

export function reportLink({ name, validation }) {
  return validation && h("a", {
    class: "button quiet", data: { action: "report" }, href: api.address(`/data/download_validation_report/${validation.report_id}`), download: true, "aria-label": `Report of the validation of ${name}`,
  }, "Report");
}

export function validateButton({ name, data_path, format, split, validation }, leaving) {
  const spec = { kind: "validate", data_path: split?.train_path ?? data_path, ...(format && { format_type: format }) };
  const button = h("button", { type: "button", class: "quiet", data: { action: "validate" }, "aria-label": `Validate ${name}` }, validation ? "Validate again" : "Validate");
  button.addEventListener("click", () => attempt(button, async () => {
    setText(button, "Validating …");
    const result = await resultOf(await api.submit(spec), leaving).finally(() => setText(button, "Validate again"));
    if (result) say(result.passed ? `${name} is valid.` : `${name} is not valid: see its findings.`, result.passed ? "plain" : "bad");
  }));
  return button;
}

export function splitButton(dataset, leaving) {
  const button = h("button", { type: "button", data: { action: "split" }, "aria-label": `Split ${dataset.name}`, onclick: () => attempt(button, () => askForSplit(dataset, leaving)) }, "Split");
  return button;
}

async function askForSplit({ name, data_path }, leaving) {
  const [{ form, element }, { datasets }] = await Promise.all([optionsOf("split", ["output_dir", ...SPLIT_FIELDS]), api.get("/data/datasets")]);
  if (leaving.aborted) return;
  form.write("output_dir", freeName(`${name}-split`, (free) => !datasets.some((each) => each.name === free)));
  const wrong = h("p", { class: "error", id: "split-wrong" });
  const split = h("button", { class: "primary", "aria-describedby": "split-wrong" }, "Split");
  const dialog = h(
    "dialog", { "aria-labelledby": "split-title", onclose: () => dialog.remove() },
    h("h2", { id: "split-title" }, `Split ${name}`),
    h("form", { novalidate: true, onsubmit }, element, wrong, h("div", { class: "actions" }, h("button", { type: "button", onclick: () => dialog.close() }, "Back"), split)),
  );
  document.body.append(dialog);
  dialog.showModal();

  async function onsubmit(event) {
    event.preventDefault();
    if (!form.check() || !sumsToOne(form)) return;
    split.disabled = true;
    try {
      const result = await resultOf(await api.submit({ kind: "split", data_path, ...form.values() }), leaving);
      if (!result) return;
      dialog.close();
      say(result.message);
    } catch (problem) {
      const homeless = form.show(problem.errors ?? []);
      setText(wrong, problem.errors?.length ? homeless.map(({ message }) => message).join(" ") : problem.message);
      say(problem.message, "unseen");
    } finally {
      split.disabled = false;
    }
  }
}

// The division that leaks less, made in the place of this one.
export function repairButton({ name }, repair, leaving) {
  const button = h("button", { type: "button", class: "primary", data: { action: "repair" }, onclick: () => attempt(button, mend) }, "Divide it so");
  return button;

  async function mend() {
    const isMeant = await confirm({ title: `Divide ${name} again?`, text: "Its files are written anew. Trainings that ran on them keep their results.", action: "Divide it so" });
    if (!isMeant) return;
    const result = await resultOf(await api.submit({ ...repair.request, kind: "split" }), leaving);
    if (result) say(result.message);
  }
}

// → what the job answers once it is completed, null when the view was left before; whatever else it becomes is an error.
function resultOf({ job_id }, leaving) {
  return new Promise((resolve, reject) => {
    const look = async () => {
      const job = await api.job(job_id);
      if (job.completed_at === null) return;
      stop();
      if (job.status === "completed") resolve(job.result);
      else reject(new Error(job.failure_detail ?? `The job was ${job.status}.`));
    };
    const onGone = () => {
      stop();
      reject(new Error("The job was removed before it was done."));
    };
    const stop = follow({ jobs: [job_id], types: ["job.completed", "job.failed", "job.cancelled"], load: look, onEvents: () => look().catch(reject), onGone });
    leaving.addEventListener("abort", () => (stop(), resolve(null)), { once: true });
  });
}
