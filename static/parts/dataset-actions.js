// What can be done with a dataset: train on it, split it, validate it, read the report. Used by the list and by one.

import * as api from "../api.js";
import { h, setText } from "../dom.js";
import { follow } from "../live.js";
import { attempt, say } from "../notices.js";
import { optionsOf, SPLIT_FIELDS, sumsToOne } from "./data-options.js";

export function useLink({ name }, tone = "") {
  return h("a", { class: `button ${tone}`, data: { action: "use" }, href: `#/train?data=${encodeURIComponent(name)}`, "aria-label": `Train on ${name}` }, "Train on it");
}

export function reportLink({ name, validation }) {
  return validation && h("a", {
    class: "button quiet", data: { action: "report" }, href: api.address(`/data/download_validation_report/${validation.report_id}`), download: true, "aria-label": `Report of the validation of ${name}`,
  }, "Report");
}

export function validateButton({ name, data_path, format, split, validation }) {
  const spec = { kind: "validate", data_path: split?.train_path ?? data_path, ...(format && { format_type: format }) };
  const button = h("button", { type: "button", class: "quiet", data: { action: "validate" }, "aria-label": `Validate ${name}` }, validation ? "Validate again" : "Validate");
  button.addEventListener("click", () => attempt(button, async () => {
    setText(button, "Validating …");
    const { result } = await done(await api.submit(spec)).finally(() => setText(button, "Validate again"));
    say(result.passed ? `${name} is valid.` : `${name} is not valid: see its findings.`, result.passed ? "plain" : "bad");
  }));
  return button;
}

export function splitButton(dataset) {
  const button = h("button", { type: "button", data: { action: "split" }, "aria-label": `Split ${dataset.name}`, onclick: () => attempt(button, () => askForSplit(dataset)) }, "Split");
  return button;
}

async function askForSplit({ name, data_path }) {
  const { form, element } = await optionsOf("split", ["output_dir", ...SPLIT_FIELDS]);
  form.write("output_dir", `${name}-split`);
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
      const { result } = await done(await api.submit({ kind: "split", data_path, ...form.values() }));
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

// → the job, once it is completed; whatever else it becomes is an error.
function done({ job_id }) {
  return new Promise((resolve, reject) => {
    const look = async () => {
      const job = await api.job(job_id);
      if (job.completed_at === null) return;
      stop();
      if (job.status === "completed") resolve(job);
      else reject(new Error(job.failure_detail ?? `The job was ${job.status}.`));
    };
    const stop = follow({ path: `/train/${job_id}/ws`, types: ["job.completed", "job.failed", "job.cancelled"], load: look, onEvents: () => look().catch(reject) });
  });
}
