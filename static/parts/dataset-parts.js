// What several views show of a dataset: how it is divided, whether it is valid, its faults.

import { h } from "../dom.js";
import { number, plural } from "../format.js";

export const PARTS = { train: "to learn from", val: "to judge by", test: "kept for the end", guard: "left out as a gap" };

export const nameOfData = (path) => path.replace(/^datasets\//, "");
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

// What a validation found: errors first, each with what to do about it and the rows it was seen in.
export function findingsList(findings) {
  return h("ul", { class: "findings" }, findings.map(({ severity, rule, message, remedy, rows }) => h(
    "li", { class: "callout", data: { tone: severity === "error" ? "bad" : "warn" } },
    h("p", {}, h("b", {}, severity), ` ${message} `, h("span", { class: "tag" }, rule)), remedy && h("p", { class: "note" }, remedy),
    rows.length > 0 && h("details", {}, h("summary", { class: "note" }, rows.length < 10 ? plural(rows.length, "row") : "some of the rows"), h("p", {}, rows.map((row) => [h("code", {}, row), " "]))),
  )));
}
