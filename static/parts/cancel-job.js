// Cancels a job once the person said yes. Used by the list of jobs and by one.

import * as api from "../api.js";
import { attempt, confirm } from "../notices.js";
import { titleOf } from "../words.js";

export async function cancelJob(button, job) {
  const text = job.kind === "finetune" ? "What it saved so far stays. A cancelled training cannot go on." : "It ends without a result.";
  if (await confirm({ title: `Cancel ${titleOf(job)}?`, text, action: "Cancel the job" })) await attempt(button, () => api.cancel(job.job_id));
}
