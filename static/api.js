// The REST API as functions. A failure is a Problem: its message is the server's own sentence, `errors` name fields.

const BASE = "/api";

export const session = new EventTarget(); // fires "unauthenticated" when the service wants its token

export class Problem extends Error {
  constructor(status, body) {
    super(body.message ?? body.detail ?? `The service answered ${status}.`);
    this.status = status;
    this.code = body.code ?? "error";
    this.errors = body.errors ?? [];
  }
}

export const get = (path, query, signal) => request("GET", address(path, query), { signal });
export const post = (path, body) => request("POST", address(path), { body });
export const patch = (path, body) => request("PATCH", address(path), { body });
export const remove = (path) => request("DELETE", address(path));

export const job = (id, signal) => get(`/jobs/${encodeURIComponent(id)}`, {}, signal);
export const submit = (spec) => post("/jobs", spec); // → { job_id, … }: it is recorded and runs on its own
export const cancel = (id) => post(`/jobs/${encodeURIComponent(id)}/cancel`);
export const pause = (id) => post(`/jobs/${encodeURIComponent(id)}/pause`);
export const resume = (id) => post(`/jobs/${encodeURIComponent(id)}/resume`);
export const removeJob = (id) => remove(`/jobs/${encodeURIComponent(id)}`);

export function address(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const search = new URLSearchParams(given).toString();
  return BASE + path + (search ? `?${search}` : "");
}

export function socketAddress(path, query) {
  return new URL(address(path, query), location.origin.replace(/^http/, "ws")).href;
}

// All events of a job of these types, oldest first: pages until there is no more.
export async function events(id, types, signal) {
  const found = [];
  for (let after = 0; ; ) {
    const page = await get(`/jobs/${encodeURIComponent(id)}/events`, { after, limit: 1000, types: types.join(",") }, signal);
    found.push(...page.events);
    if (page.events.length < 1000) return found;
    after = page.next;
  }
}

// The end of what a job printed, as text; with an offset only what was written since.
export async function log(id, query, signal) {
  const answer = await fetch(address(`/jobs/${encodeURIComponent(id)}/log`, query), { signal });
  if (!answer.ok) throw await problemOf(answer);
  const header = (name) => Number(answer.headers.get(name) ?? 0);
  return { text: await answer.text(), attempt: header("x-log-attempt"), offset: header("x-log-offset") };
}

// Uploads a file, telling the bytes sent so far: fetch cannot, so this is the older interface.
export function upload(file, onSent, signal) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append("file", file);
    const sending = new XMLHttpRequest();
    sending.open("POST", address("/data/upload"));
    sending.responseType = "json";
    sending.upload.onprogress = (event) => onSent(Math.min(event.loaded, file.size));
    sending.onerror = () => reject(unreachable());
    sending.onabort = () => reject(new DOMException("The upload was cancelled.", "AbortError"));
    signal?.addEventListener("abort", () => sending.abort());
    sending.onload = () => {
      const body = sending.response ?? {};
      if (sending.status === 401) session.dispatchEvent(new Event("unauthenticated"));
      if (sending.status < 400) resolve(body);
      else reject(new Problem(sending.status, body));
    };
    sending.send(form);
  });
}

async function request(method, url, { body, signal } = {}) {
  const headers = { accept: "application/json" };
  if (body !== undefined) headers["content-type"] = "application/json";
  let answer;
  try {
    answer = await fetch(url, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    throw error.name === "AbortError" ? error : unreachable();
  }
  if (!answer.ok) throw await problemOf(answer);
  return answer.json();
}

async function problemOf(answer) {
  const isSigningIn = answer.url.endsWith("/session"); // a wrong token is the dialog's own matter
  if (answer.status === 401 && !isSigningIn) session.dispatchEvent(new Event("unauthenticated"));
  const body = await answer.json().catch(() => ({}));
  return new Problem(answer.status, body);
}

function unreachable() {
  return new Problem(0, { code: "unreachable", message: "The service does not answer. It may be restarting; try again in a moment." });
}
