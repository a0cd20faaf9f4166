// Webhooks: who is told of which events, how it goes, and what can be sent again.
//
// The address says whose log is open (`log`) and which of its deliveries are shown (`state`).

import * as api from "../api.js";
import { arrange, h, replace, setText } from "../dom.js";
import { moment, number, plural } from "../format.js";
import { gather } from "../gather.js";
import { listKeys } from "../keyboard.js";
import { follow } from "../live.js";
import { attempt, confirm, say } from "../notices.js";
import { deliveryLog } from "../parts/delivery-log.js";
import { copyButton, facts } from "../parts/pieces.js";
import { webhookForm } from "../parts/webhook-form.js";
import "../elements/time-ago.js";

export const title = "Webhooks";

const HEARD = ["webhook.disabled", "job.submitted", "job.started", "job.completed", "job.failed", "job.cancelled"];
const LOOK_MS = 5000; // what a receiver answers is no event

export function render(root, { query, set }) {
  const cards = new Map(); // id → { element, update(webhook), log? }
  let known = [];

  const form = webhookForm({ done: added });
  const secret = h("section", { class: "callout", data: { tone: "good" }, tabindex: "-1", "aria-label": "The new secret", hidden: true });
  const count = h("span", { class: "note" });
  const list = h("ul", { class: "hooks", "aria-label": "Webhooks, oldest first" });
  const loading = h("p", { class: "loading" }, "Loading …");
  const empty = h("div", { class: "empty", hidden: true }, h("h2", {}, "No webhook yet"), h("p", {}, "Add the address of a receiver above: it is told of what happens here, signed, in order, and again until it arrives."));
  root.append(
    h("div", { class: "head" }, h("h1", {}, "Webhooks"), count), secret,
    h("section", { class: "card" }, form.element),
    h("div", { class: "head list-head" }, h("h2", {}, "Who is told")), loading, list, empty,
  );

  const stopKeys = listKeys(() => [...list.children], { n: ["Add a webhook", form.focus] });
  const refresh = gather(() => load(() => true), 500);
  const stopListening = follow({ types: HEARD, load, onEvents: refresh });
  const timer = setInterval(() => document.hidden || refresh(), LOOK_MS);
  return () => {
    stopKeys();
    stopListening();
    refresh.stop();
    clearInterval(timer);
  };

  async function load(isNewest) {
    const found = await api.get("/webhooks");
    await cards.get(query.get("log"))?.log?.load();
    if (!isNewest() || !root.isConnected) return;
    known = found;
    draw();
  }

  function draw() {
    loading.hidden = true;
    empty.hidden = known.length > 0;
    setText(count, known.length ? plural(known.length, "webhook") : "");
    const gone = [...cards.keys()].filter((id) => !known.some(({ webhook_id }) => webhook_id === id));
    gone.forEach((id) => cards.delete(id));
    arrange(list, known.map((webhook) => {
      if (!cards.has(webhook.webhook_id)) cards.set(webhook.webhook_id, cardOf(webhook));
      const card = cards.get(webhook.webhook_id);
      card.update(webhook);
      return card.element;
    }));
  }

  async function added(answer) {
    if (answer.secret) showSecret(answer, "The webhook is added. This is its secret:");
    await load(() => true);
  }

  // Never stored in the page's address or storage: it goes with the view.
  function showSecret(answer, sentence) {
    const text = h("code", { class: "wrap" }, answer.secret);
    replace(
      secret, h("p", {}, h("b", {}, sentence)), h("p", {}, text),
      h("p", { class: "note" }, "It is shown only now. The receiver checks with it that a message is ours", answer.previous_until ? `; the one before goes on to sign until ${moment(answer.previous_until)}.` : "."),
      h("div", { class: "actions" }, copyButton("Copy the secret", () => answer.secret, () => byHand(text)), h("button", { type: "button", onclick: () => (secret.hidden = true) }, "I have it")),
    );
    secret.hidden = false;
    secret.focus();
    secret.scrollIntoView({ block: "nearest" });
  }

  // -- one webhook

  function cardOf(webhook) {
    const path = `/webhooks/${encodeURIComponent(webhook.webhook_id)}`;
    const name = h("h3", { class: "wrap" });
    const state = h("span", { class: "badge" });
    const trouble = h("p", { class: "callout", hidden: true });
    const about = h("div");
    const place = h("div", { class: "log-of-hook" });
    const card = { update, log: null, close: () => card.log && open(false) };
    let shown = webhook;

    const ping = button("Ping", async () => {
      const answer = await api.post(`${path}/ping`);
      say(answer.success ? `The receiver answered ${answer.status} after ${number(answer.latency_ms)} ms.` : answer.error, answer.success ? "plain" : "bad");
      await card.log?.load();
    });
    const deliveries = h("button", { type: "button", "aria-expanded": "false", onclick: () => open(!card.log) }, "Deliveries");
    const again = button("Send what it did not get", async () => {
      const answer = await api.post(`${path}/replay`, { after: shown.undelivered_after ?? 0, undelivered_only: true });
      say(answer.message);
      refresh();
    });
    const change = button("Change", async () => form.edit(shown));
    const rotate = button("Rotate the secret", async () => showSecret(await api.post(`${path}/rotate`), "This is the new secret:"));
    const toggle = button("", async () => {
      update(await api.patch(path, { enabled: !shown.enabled }));
      say(shown.enabled ? "The webhook is enabled." : "The webhook is disabled. What happens meanwhile is kept.");
    });
    const remove = button("Delete", async () => {
      if (!(await confirm({ title: `Delete the webhook to ${hostOf(shown.url)}?`, text: "Its log and what it did not get go with it.", action: "Delete the webhook" }))) return;
      await api.remove(path);
      if (query.get("log") === shown.webhook_id) set({ log: "", state: "" });
      say("The webhook is deleted.");
      await load(() => true);
    });
    remove.classList.add("quiet");
    card.element = h(
      "li", { class: "card hook", data: { id: webhook.webhook_id } },
      h("div", { class: "card-head" }, name, state), trouble, about,
      h("div", { class: "actions" }, ping, deliveries, again, change, rotate, toggle, remove), place,
    );
    if (query.get("log") === webhook.webhook_id) open(true);
    return card;

    function update(webhook) {
      shown = webhook;
      const missed = webhook.held + webhook.failed;
      const mood = !webhook.enabled ? "disabled" : webhook.failing_since ? "failing" : "enabled";
      setText(name, webhook.description || hostOf(webhook.url));
      state.dataset.status = { disabled: "cancelled", failing: "failed", enabled: "completed" }[mood];
      replace(state, h("span", { class: "sign", "aria-hidden": "true" }, { disabled: "–", failing: "✕", enabled: "✓" }[mood]), mood);
      trouble.hidden = !webhook.disabled_reason && !webhook.failing_since;
      setText(trouble, webhook.disabled_reason ? `Disabled ${moment(webhook.disabled_at)}: ${webhook.disabled_reason}` : webhook.failing_since ? `Nothing has arrived since ${moment(webhook.failing_since)}; it is tried again by itself. The log says what went wrong.` : "");
      replace(about, facts([
        ["Address", h("span", { class: "wrap" }, webhook.url)],
        ["Events", webhook.types.join(", ")],
        ["Only jobs tagged", webhook.tag],
        ["Delivered", number(webhook.delivered)],
        ["Waiting", webhook.pending ? number(webhook.pending) : null],
        ["Not delivered", missed ? `${number(missed)} (${number(webhook.held)} kept while it was disabled, ${number(webhook.failed)} given up)` : null],
        ["Two secrets sign until", webhook.previous_secret_until && new Date(webhook.previous_secret_until) > new Date() ? moment(webhook.previous_secret_until) : null],
      ]));
      again.hidden = !missed || !webhook.enabled;
      setText(again, `Send the ${number(missed)} it did not get`);
      setText(toggle, webhook.enabled ? "Disable" : "Enable");
      for (const [each, words] of [[ping, "Ping"], [deliveries, "Deliveries of"], [change, "Change"], [rotate, "Rotate the secret of"], [toggle, webhook.enabled ? "Disable" : "Enable"], [remove, "Delete"]]) each.setAttribute("aria-label", `${words} ${name.textContent}`);
    }

    function open(isOpen) {
      if (isOpen) for (const other of cards.values()) if (other !== card) other.close();
      card.log = isOpen ? deliveryLog({ path, state: query.get("state") ?? "", onState: (chosen) => set({ state: chosen }), onAgain: refresh }) : null;
      replace(place, card.log?.element);
      deliveries.setAttribute("aria-expanded", String(isOpen));
      set({ log: isOpen ? webhook.webhook_id : "", state: isOpen ? query.get("state") : "" });
      if (isOpen) attempt(deliveries, card.log.load);
    }

    function button(label, work) {
      const element = h("button", { type: "button", onclick: () => attempt(element, work) }, label);
      return element;
    }
  }
}

function hostOf(url) {
  return URL.canParse(url) ? new URL(url).host : url;
}

function byHand(element) {
  getSelection().selectAllChildren(element);
  return "The browser does not let pages copy here: it is selected, press Ctrl-C.";
}
