// What several views show of a dataset: how it is divided, whether it is valid, its classes, its faults.

import { h } from "../dom.js";
import { number, percent, plural } from "../format.js";

export const PARTS = { train: "to learn from", val: "to judge by", test: "kept for the end", guard: "left out as a gap" };

export const datasetAddress = (name) => `#/data/${name.split("/").map(encodeURIComponent).join("/")}`;

// A stacked bar of the parts of a split, with the figures as its text.
export function splitBar(split) {
  const parts = Object.keys(PARTS).map((part) => [part, split[`${part}_samples`] ?? 0]).filter(([, count]) => count > 0);
  return h(
    "div", { class: "split" },
    h("div", { class: "stack", "aria-hidden": "true" }, parts.map(([part, count]) => h("i", { data: { part }, style: { "flex-grow": count } }))),
    h("span", { class: "note" }, parts.map(([part, count]) => h("span", { data: { part }, title: PARTS[part] }, `${number(count)} ${part}`))),
  );
}

const OUTCOMES = { passed: ["completed", "✓", "valid"], passed_with_warnings: ["pending", "!", "valid"], failed: ["failed", "✕", "not valid"] };

export function validationBadge(validation) {
  if (!validation) return h("span", { class: "badge" }, h("span", { class: "sign", "aria-hidden": "true" }, "?"), "not validated");
  const [status, sign, word] = OUTCOMES[validation.result];
  const findings = [validation.num_errors && plural(validation.num_errors, "error"), validation.num_warnings && plural(validation.num_warnings, "warning")].filter(Boolean);
  return h("span", { class: "badge", data: { status } }, h("span", { class: "sign", "aria-hidden": "true" }, sign), [word, ...findings].join(", "));
}

// The classes by count, the most frequent first, as a bar each; `limit` shows the first and counts the rest.
export function classBars(labels, limit = Infinity) {
  const sorted = Object.entries(labels).sort(([, one], [, other]) => other - one);
  const most = sorted[0]?.[1] ?? 1;
  const total = sorted.reduce((sum, [, count]) => sum + count, 0);
  const rest = sorted.length - limit;
  return h(
    "ul", { class: "classes" },
    sorted.slice(0, limit).map(([label, count]) => h(
      "li", { title: percent(count / total) },
      h("span", {}, label), h("i", { "aria-hidden": "true", style: { "--share": `${100 * count / most}%` } }), h("b", {}, number(count)),
    )),
    rest > 0 && h("li", { class: "note" }, `and ${plural(rest, "more class", "more classes")}`),
  );
}

// What a validation found, each with what to do about it.
export function findingsList(findings) {
  return h("ul", { class: "findings" }, findings.map(({ severity, message, remedy, rows }) => h(
    "li", { class: "callout", data: { tone: severity === "error" ? "bad" : "warn" } },
    h("p", {}, h("b", {}, severity), ` ${message}`), remedy && h("p", { class: "note" }, remedy),
    rows.length > 0 && h("p", { class: "note" }, `Such as ${rows.slice(0, 5).join(", ")}.`),
  )));
}
