// The live list of jobs. Loads the newest, then looks again at each job that the event stream names.
import { loadJob, loadJobs } from "./api.js";
import { listen } from "./live.js";

const SHOWN = 50;
const body = document.getElementById("jobs");
const rows = new Map(); // job id → table row
const asked = new Map(); // job id → the look that is under way, so that a burst of events costs one

function cell(row, content) {
  const element = row.insertCell();
  if (content instanceof Node) element.append(content);
  else element.textContent = content;
}

function bar(job) {
  const element = document.createElement("progress");
  element.max = 100;
  element.value = job.progress_percentage;
  element.setAttribute("aria-label", `${Math.round(job.progress_percentage)} percent`);
  return element;
}

function saying(job) {
  return job.failure_detail ?? job.waiting_reason ?? job.result?.message ?? job.phase ?? "";
}

function show(job, first = true) {
  const row = rows.get(job.job_id) ?? body.insertRow(first ? 0 : -1);
  rows.set(job.job_id, row);
  row.replaceChildren();
  for (const content of [job.job_id, job.kind, job.status, bar(job), job.train_loss?.toFixed(4) ?? "", saying(job)]) {
    cell(row, content);
  }
  document.getElementById("empty").hidden = true;
}

async function look(jobId) {
  if (asked.has(jobId)) return asked.set(jobId, true);
  asked.set(jobId, false);
  const job = await loadJob(jobId);
  if (job) show(job);
  const again = asked.get(jobId);
  asked.delete(jobId);
  return again && look(jobId);
}

const { jobs, seq } = await loadJobs(SHOWN);
for (const job of jobs) show(job, false);
document.getElementById("empty").hidden = jobs.length > 0;
listen(seq, (event) => look(event.job_id), (state) => (document.getElementById("link").textContent = state));
