// How jobs are called on the page: titles, kinds and statuses, and what is said of one in a line.

import { h } from "./dom.js";
import { duration, number, percent } from "./format.js";

export const LIVE = ["pending", "queued", "running", "paused"];
export const STATUSES = [...LIVE, "completed", "failed", "cancelled"];
export const KINDS = {
  preview: "Preview", plan: "Plan", finetune: "Training", prepare: "Preparation", convert: "Conversion", validate: "Validation", split: "Split",
  evaluate: "Evaluation", generate: "Answers", export: "Export",
};

const SIGNS = { pending: "◌", queued: "◔", running: "●", paused: "❚❚", completed: "✓", failed: "✕", cancelled: "–" };

export const isLive = (job) => LIVE.includes(job.status);

// An export is named after its training where that is among the known jobs.
export function titleOf({ job_id, spec }, known = new Map()) {
  switch (spec.kind) {
    case "plan": return `Plan of ${spec.config.model_name}`;
    case "finetune": return spec.experiment_name ?? spec.config.output_dir ?? `${spec.config.model_name} ${job_id.slice(-6)}`;
    case "prepare": case "convert": case "split": return spec.output_dir;
    case "validate": return spec.data_path;
    case "export": return `${spec.export_format} of ${known.has(spec.job_id) ? titleOf(known.get(spec.job_id)) : spec.job_id.slice(-6)}`;
    default: return spec.data_path;
  }
}

// The same for a line of the list of experiments, which carries no spec.
export const nameOf = ({ experiment_id, experiment_name, model_name }) => experiment_name ?? `${model_name} ${experiment_id.slice(-6)}`;

export const methodOf = ({ use_lora, use_qlora }) => (use_qlora ? "QLoRA" : use_lora ? "LoRA" : "full");

// Colour, sign and word: none of them alone carries the meaning.
export function badge(status) {
  return h("span", { class: "badge", data: { status } }, h("span", { class: "sign", "aria-hidden": "true" }, SIGNS[status]), status);
}

// What happens, or happened, to a job, in one line.
export function saying(job) {
  if (job.cancel_requested_at && isLive(job)) return "is being cancelled";
  if (job.pause_requested_at && isLive(job)) return job.preempted_by ? "saves its state and makes room for a job of higher priority; it goes on by itself" : "saves its state and pauses";
  if (job.status === "failed") return job.failure_detail;
  if (job.status === "pending") {
    const place = job.queue_position ? `place ${job.queue_position} in the queue` : "";
    const seconds = job.predicted_start_at ? (Date.parse(job.predicted_start_at) - Date.now()) / 1000 : 0; // only the queue says it
    return [job.waiting_reason, place, seconds > 1 && `likely to start in ${duration(seconds)}`].filter(Boolean).join(" · ");
  }
  if (job.status === "running") {
    const steps = job.total_steps ? `step ${number(job.step ?? 0)} of ${number(job.total_steps)}` : "";
    const left = job.eta_s ? `${duration(job.eta_s)} left` : "";
    return [job.phase, steps, left].filter(Boolean).join(" · ");
  }
  return said(job) || job.notes?.at(-1) || "";
}

// What a job that ended with a result has to show for it.
function said({ result, best_eval_loss, best_eval_accuracy }) {
  if (result?.kind === "validate") return result.passed ? "valid" : `not valid: ${result.errors[0]?.message}`;
  if (result?.kind === "evaluate") return result.label_accuracy === null ? `exact match ${percent(result.exact_match)}` : `label accuracy ${percent(result.label_accuracy)}`;
  if (result?.kind !== "finetune" || best_eval_loss === null) return result?.message;
  return [`best eval loss ${number(best_eval_loss)}`, best_eval_accuracy !== null && `accuracy ${percent(best_eval_accuracy)}`].filter(Boolean).join(" · ");
}

// Takes over what a job.progressed event says. What it leaves out stays, but for the time left: that is unknown then.
export function progressed(job, { step, total_steps, fraction, epoch, total_epochs, phase, eta_s = null }) {
  const said = Object.entries({ epoch, total_epochs, phase }).filter(([, value]) => value !== undefined && value !== null);
  const furthest = Math.max(job.fraction ?? 0, fraction); // an attempt that begins again is behind for a while
  Object.assign(job, { step, total_steps, eta_s, fraction: furthest, progress_percentage: Math.min(99.9, 100 * furthest) }, Object.fromEntries(said));
}

// A bar with its share in words; without a known share it moves.
export function progressBar(job) {
  const share = job.progress_percentage;
  const isUnknown = job.status === "running" && !job.fraction;
  return h("progress", {
    max: 100, value: isUnknown ? null : share, data: { status: job.status }, "aria-label": isUnknown ? "in progress" : `${Math.round(share)} percent done`,
  });
}
