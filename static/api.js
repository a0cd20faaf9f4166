// The REST API as functions. Answers come as plain objects; a job that is gone comes as null.

async function get(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" } });
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Error((await answer.json()).message);
  return answer.json();
}

// The newest jobs, and a cursor: every later event has a greater seq.
export async function loadJobs(limit) {
  const { jobs } = await get(`/api/jobs?limit=${limit}`);
  return { jobs, seq: Math.max(0, ...jobs.map((job) => job.last_seq)) };
}

export function loadJob(jobId) {
  return get(`/api/jobs/${encodeURIComponent(jobId)}`);
}
