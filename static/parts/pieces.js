// Pieces that many views are made of: a card, facts, bars, a table that scrolls, a button that copies.

import { h } from "../dom.js";
import { number, percent, plural } from "../format.js";
import { attempt, say } from "../notices.js";

export function card(title, ...content) {
  return h("section", { class: "card" }, h("h2", {}, title), content);
}

// What is not known, or not so, is left out.
export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.filter(([, fact]) => ![null, undefined, false, ""].includes(fact)).map(([term, fact]) => [h("dt", {}, term), h("dd", {}, fact)]));
}

// A place for what may be wider than the screen: reached by keyboard, it scrolls with the arrow keys.
export function scroller(label, ...content) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, content);
}

// Values as bars beside one another, in the order given: the word, the bar, the figure.
export function bars(values, { text = number, title = () => null } = {}) {
  const most = Math.max(1e-9, ...Object.values(values));
  return h("ul", { class: "bars" }, Object.entries(values).map(([name, value]) => h(
    "li", { title: title(value) }, h("span", {}, name), h("i", { "aria-hidden": "true", style: { "--share": `${(100 * value) / most}%` } }), h("b", {}, text(value)),
  )));
}

// The classes by count, the most frequent first; `limit` shows the first and counts the rest.
export function classBars(labels, limit = Infinity) {
  const sorted = Object.entries(labels).sort(([, one], [, other]) => other - one);
  const total = sorted.reduce((sum, [, count]) => sum + count, 0);
  const rest = sorted.length - limit;
  const list = bars(Object.fromEntries(sorted.slice(0, limit)), { title: (count) => percent(count / total) });
  if (rest > 0) list.append(h("li", { class: "note" }, `and ${plural(rest, "more class", "more classes")}`));
  return list;
}

// How values are spread, as bars that stand side by side: { edges, counts } with one edge more than counts.
export function histogram(title, { edges, counts }, text = number) {
  const most = Math.max(1, ...counts);
  const total = counts.reduce((sum, count) => sum + count, 0);
  const between = (place) => `${text(edges[place])} to ${text(edges[place + 1])}`;
  const marked = [...new Set([0, Math.floor(counts.length / 2), counts.length])];
  const tallest = counts.indexOf(Math.max(...counts));
  const said = total ? `${title}: ${plural(total, "value")}, most of them (${percent(counts[tallest] / total)}) from ${between(tallest)}` : `${title}: no values`;
  return h(
    "figure", { class: "histogram" }, h("figcaption", {}, title),
    h("div", { class: "columns", role: "img", "aria-label": said }, counts.map((count, place) => h("i", { title: `${between(place)}: ${number(count)}`, style: { "--share": `${(100 * count) / most}%` } }))),
    h("div", { class: "edges note", "aria-hidden": "true" }, marked.map((place) => h("span", { style: { "--at": place / Math.max(1, counts.length) } }, text(edges[place])))),
  );
}

// Browsers let no page copy without https; `byHand` then helps the person to do it and says how.
export function copyButton(label, textOf, byHand) {
  const button = h("button", { type: "button", onclick: () => attempt(button, copy) }, label);
  return button;

  async function copy() {
    try {
      await navigator.clipboard.writeText(textOf());
      say("Copied.");
    } catch {
      say(byHand());
    }
  }
}
