// The form that adds a webhook, or changes one.

import * as api from "../api.js";
import { h, setText } from "../dom.js";
import { attempt, say } from "../notices.js";

export const EVENTS = {
  Ends: ["job.completed", "job.failed", "job.cancelled"],
  Course: ["job.submitted", "job.placed", "job.waiting", "job.started", "job.phase_entered", "job.noted", "job.interrupted", "job.cancel_requested", "job.pause_requested", "job.resume_requested", "job.paused", "training.resumed"],
  Results: ["metrics.logged", "sample.predicted", "checkpoint.saved", "checkpoint.removed", "artifact.created"],
  Webhooks: ["webhook.disabled"],
};

// → { element, focus(), edit(webhook) }; `done(answer)` gets what the service answered.
export function webhookForm({ done }) {
  let editing = null;

  const heading = h("h2", {}, "Add a webhook");
  const url = h("input", { type: "url", id: "hook-url", required: true, maxlength: 2048, placeholder: "https://…", autocomplete: "off", "aria-describedby": "hook-url-note hook-url-wrong" });
  const description = h("input", { id: "hook-description", maxlength: 200, placeholder: "what it is for" });
  const tag = h("input", { id: "hook-tag", maxlength: 100, placeholder: "any job" });
  const wrong = h("p", { class: "error", id: "hook-url-wrong" });
  const boxes = new Map(Object.values(EVENTS).flat().map((name) => [name, h("input", { type: "checkbox", value: name, checked: EVENTS.Ends.includes(name) })]));
  const groups = Object.entries(EVENTS).map(([label, names]) => h(
    "fieldset", { class: "events" }, h("legend", {}, label),
    h("div", { class: "pills" }, names.map((name) => h("label", {}, boxes.get(name), h("span", {}, name)))),
  ));
  const send = h("button", { class: "primary" }, "Add the webhook");
  const back = h("button", { type: "button", hidden: true, onclick: () => edit(null) }, "Back");
  const element = h(
    "form", { class: "making", onsubmit: submit }, heading,
    h("div", { class: "field" }, h("label", { for: "hook-url" }, "Address of the receiver"), url, wrong, h("p", { class: "note", id: "hook-url-note" }, "https to a public address; others where the service's TRAINING_OUTGOING_NETWORKS lists their network.")),
    groups[0], h("details", {}, h("summary", {}, "More events"), groups.slice(1)),
    h("div", { class: "fields" },
      h("div", { class: "field" }, h("label", { for: "hook-tag" }, "Only jobs with the tag"), tag),
      h("div", { class: "field" }, h("label", { for: "hook-description" }, "Description"), description)),
    h("div", { class: "actions" }, send, back),
  );
  url.addEventListener("input", () => complain(""));
  return { element, focus: () => url.focus(), edit };

  function edit(webhook) {
    editing = webhook;
    setText(heading, webhook ? "Change the webhook" : "Add a webhook");
    setText(send, webhook ? "Save the change" : "Add the webhook");
    back.hidden = !webhook;
    url.value = webhook?.url ?? "";
    tag.value = webhook?.tag ?? "";
    description.value = webhook?.description ?? "";
    for (const [name, box] of boxes) box.checked = (webhook?.types ?? EVENTS.Ends).includes(name);
    element.querySelector("details").open = Boolean(webhook?.types.some((name) => !EVENTS.Ends.includes(name)));
    complain("");
    if (webhook) url.focus();
  }

  function submit(event) {
    event.preventDefault();
    const types = [...boxes].filter(([, box]) => box.checked).map(([name]) => name);
    if (types.length === 0) return say("Choose at least one event.", "bad");
    attempt(send, async () => {
      const wanted = { url: url.value.trim(), types, description: description.value.trim() };
      const answer = await asked(wanted, tag.value.trim()).catch(refused);
      if (!answer) return;
      if (editing) say("The webhook is changed.");
      edit(null);
      await done(answer);
    });
  }

  function asked(wanted, tagged) {
    if (!editing) return api.post("/webhooks", tagged ? { ...wanted, tag: tagged } : wanted);
    if (wanted.url === editing.url) delete wanted.url; // which would be another chance for it
    return api.patch(`/webhooks/${encodeURIComponent(editing.webhook_id)}`, { ...wanted, tag: tagged });
  }

  function refused(problem) {
    const about = problem.errors?.find(({ path }) => path === "url");
    if (!about) throw problem;
    complain(about.message);
    say(about.message, "unseen");
    url.focus();
    return null;
  }

  function complain(text) {
    setText(wrong, text);
    if (text) url.setAttribute("aria-invalid", "true");
    else url.removeAttribute("aria-invalid");
  }
}
