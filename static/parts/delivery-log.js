// What a webhook was sent and what waits for it, newest first, page by page; each can be sent again.

import * as api from "../api.js";
import { h, replace, setText } from "../dom.js";
import { moment, number } from "../format.js";
import { attempt, say } from "../notices.js";
import { scroller } from "./pieces.js";
import "../elements/time-ago.js";

const PAGE = 50;
const STATES = { "": "all deliveries", pending: "waiting", delivered: "delivered", failed: "given up", held: "kept while disabled" };
const TONES = { pending: "running", delivered: "completed", failed: "failed", held: "paused" };
const SIGNS = { pending: "◌", delivered: "✓", failed: "✕", held: "❚❚" };

// → { element, load() }
export function deliveryLog({ path, state, onState, onAgain }) {
  let rows = [];
  let before = null;
  let isFirstPage = true;

  const choice = h("select", { "aria-label": "Which deliveries", onchange: choose }, Object.entries(STATES).map(([value, text]) => h("option", { value, selected: value === state }, text)));
  const body = scroller("Deliveries");
  const older = h("button", { type: "button", hidden: true, onclick: () => attempt(older, loadOlder) }, "Older deliveries");
  const element = h("section", { class: "delivery-log", "aria-label": "Delivery log" }, h("div", { class: "filters" }, choice), body, h("p", { class: "more" }, older));
  return { element, load };

  function choose() {
    onState(choice.value);
    isFirstPage = true;
    attempt(choice, load);
  }

  // Keeps the older pages that somebody looks at: those are not loaded anew.
  async function load() {
    if (!isFirstPage || element.querySelector("details[open]")) return;
    const wanted = choice.value;
    const page = await asked();
    if (wanted !== choice.value) return;
    ({ deliveries: rows, before } = page);
    draw();
  }

  async function loadOlder() {
    const page = await asked(before);
    isFirstPage = false;
    rows.push(...page.deliveries);
    ({ before } = page);
    draw();
  }

  function asked(cursor) {
    return api.get(`${path}/deliveries`, { limit: PAGE, state: choice.value, before: cursor });
  }

  function draw() {
    older.hidden = before === null;
    const focused = document.activeElement?.closest?.("tr")?.dataset.id;
    if (rows.length === 0) replace(body, h("p", { class: "note" }, choice.value ? "There is none of these." : "Nothing was sent yet."));
    else replace(body, h(
      "table", {},
      h("thead", {}, h("tr", {}, ["Event", "State", "Last try", "What came back", "Next try", ""].map((name) => h("th", { scope: "col" }, name || h("span", { class: "unseen" }, "Actions"))))),
      h("tbody", {}, rows.map(rowOf)),
    ));
    if (focused) body.querySelector(`tr[data-id="${CSS.escape(focused)}"] button`)?.focus({ preventScroll: true });
  }

  function rowOf(row) {
    const again = h("button", { type: "button", "aria-label": `Send ${row.type} ${row.seq} again`, onclick: () => attempt(again, () => redeliver(row)) }, row.state === "pending" ? "Try now" : "Send again");
    const word = row.seq ? STATES[row.state] : row.state; // a ping is never given up: it has one try
    const canSend = row.seq && (row.state !== "pending" || row.next_try_at); // what waits for others waits for them
    return h(
      "tr", { data: { id: row.delivery_id, state: row.state } },
      h("th", { scope: "row" }, row.type, " ", row.seq && h("span", { class: "note" }, `#${row.seq} `), row.job_id && h("a", { href: `#/job/${row.job_id}` }, row.job_id.slice(-6))),
      h("td", {}, h("span", { class: "badge", data: { status: TONES[row.state] } }, h("span", { class: "sign", "aria-hidden": "true" }, SIGNS[row.state]), word)),
      h("td", { class: row.attempted_at ? "" : "none" }, row.attempted_at ? [h("time-ago", { datetime: row.attempted_at }), h("div", { class: "note" }, `try ${number(row.tries)}, ${number(row.latency_ms)} ms`)] : "–"),
      h("td", { class: row.attempted_at ? "wrap" : "none" }, answerOf(row)),
      h("td", { class: row.state === "pending" ? "" : "none" }, row.next_try_at ? `again ${moment(row.next_try_at)}` : row.state === "pending" ? "after those before it" : "–"),
      h("td", { class: canSend ? "" : "none" }, canSend && again),
    );
  }

  async function redeliver(row) {
    await api.post(`${path}/deliveries/${row.delivery_id}/redeliver`);
    say("It is sent again.");
    isFirstPage = true;
    await load();
    onAgain();
  }
}

function answerOf({ status, error, response }) {
  const said = error ?? (status ? `answered ${status}` : "–");
  return response ? [h("div", {}, said), h("details", {}, h("summary", {}, "Its answer"), h("pre", { class: "log" }, response))] : said;
}
