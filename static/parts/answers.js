// What a model answered beside what was expected, as cards; and the same rows over the steps of a training.

import { address } from "../api.js";
import { h, replace, setText } from "../dom.js";
import { drawing } from "../gather.js";
import { number } from "../format.js";
import { isLive } from "../words.js";

// The picture, the question, both answers, right or wrong in sign and word.
export function answerCard({ row_id, image, prompt, expected, predicted, correct }) {
  const sign = correct === true ? "✓" : correct === false ? "✗" : "";
  const word = correct === true ? "right" : correct === false ? "wrong" : "not judged";
  const isKnown = correct !== null && correct !== undefined;
  return h(
    "li", { class: "answer", data: { correct: String(correct), row: row_id } },
    image ? h("img", { src: address("/data/image", { path: image }), alt: `Picture of row ${row_id}`, loading: "lazy" }) : h("span", { class: "picture note" }, "no picture"),
    h("dl", { class: "facts" },
      h("dt", {}, "Asked"), h("dd", {}, visible(prompt)),
      h("dt", {}, "Expected"), h("dd", {}, visible(expected)),
      h("dt", {}, "Answered"), h("dd", {}, visible(predicted), isKnown && h("b", { class: "verdict" }, ` ${sign} ${word}`)),
    ),
  );
}

// → { element, load(events), hear(event), update(job), stop() }. The newest step is followed until another one is chosen.
export function samples({ query, set }) {
  const steps = new Map(); // step → row id → sample
  let chosen = query.has("sample") ? Number(query.get("sample")) : null;

  const slider = h("input", { type: "range", min: 0, "aria-label": "Step of the sample answers", oninput: () => choose(known()[Number(slider.value)]) });
  const before = h("button", { type: "button", "aria-label": "Earlier step", onclick: () => move(-1) }, "‹");
  const after = h("button", { type: "button", "aria-label": "Later step", onclick: () => move(+1) }, "›");
  const where = h("span", { class: "where" });
  const newest = h("button", { type: "button", class: "quiet", onclick: () => choose(null) }, "Newest");
  const list = h("ul", { class: "answers" });
  const controls = h("div", { class: "toolbar" }, before, slider, after, where, newest);
  const empty = h("p", { class: "note" }, "The model answers a few rows from time to time; its answers stand here then.");
  const element = h("section", { class: "card", id: "answers" }, h("div", { class: "head" }, h("h2", {}, "Sample answers"), controls), empty, list);
  const drawSoon = drawing(draw);
  draw();
  return { element, load, hear, update, stop: drawSoon.stop };

  function load(events) {
    steps.clear();
    events.forEach(take);
    draw();
  }

  function hear(event) {
    if (take(event)) drawSoon();
  }

  function update(job) {
    element.hidden = !isLive(job) && steps.size === 0;
  }

  function take(event) {
    if (event.type === "training.resumed") for (const step of steps.keys()) if (step > event.step) steps.delete(step);
    if (event.type === "sample.predicted") {
      if (!steps.has(event.step)) steps.set(event.step, new Map());
      steps.get(event.step).set(event.row_id, event);
    }
    return event.type === "training.resumed" || event.type === "sample.predicted";
  }

  function known() {
    return [...steps.keys()].sort((a, b) => a - b);
  }

  function move(by) {
    const all = known();
    choose(all[Math.min(all.length - 1, Math.max(0, Number(slider.value) + by))]);
  }

  function choose(step) {
    chosen = step === known().at(-1) ? null : step;
    set({ sample: chosen === null ? "" : String(chosen) });
    draw();
  }

  function draw() {
    const all = known();
    controls.hidden = all.length === 0;
    empty.hidden = all.length > 0;
    if (all.length === 0) return replace(list);
    const step = steps.has(chosen) ? chosen : all.at(-1);
    const place = all.indexOf(step);
    const rows = [...steps.get(step).values()];
    slider.max = all.length - 1;
    slider.value = place;
    slider.setAttribute("aria-valuetext", `step ${step}`);
    before.disabled = place === 0;
    after.disabled = newest.disabled = place === all.length - 1;
    const right = rows.filter(({ correct }) => correct).length;
    setText(where, `step ${number(step)} · ${right} of ${rows.length} right`);
    rows.forEach((row, n) => fillCard(n, row));
    while (list.children.length > rows.length) list.lastChild.remove();
  }

  // The same rows are asked again and again: a card whose row stays keeps its picture.
  function fillCard(n, row) {
    const old = list.children[n];
    const card = answerCard(row);
    if (!old) return list.append(card);
    if (old.dataset.row === row.row_id) card.replaceChild(old.firstChild, card.firstChild);
    old.replaceWith(card);
  }
}

// Control characters, which an untrained model likes, as they are written in code.
function visible(text) {
  const shown = text.replace(/[\u0000-\u0009\u000b-\u001f]/g, (sign) => `\\x${sign.charCodeAt(0).toString(16).padStart(2, "0")}`);
  return shown || h("i", { class: "note" }, "nothing");
}
