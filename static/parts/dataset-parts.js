// What several views show of a dataset: how it is divided, whether it is valid, its faults.

import { h } from "../dom.js";
import { number, percent, plural } from "../format.js";
import { attempt } from "../notices.js";
import { bars, histogram, scroller } from "./pieces.js";

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

// What a validation found: errors first, each with what to do about it and the rows it was seen in; `open(row)` shows one.
export function findingsList(findings, open = null) {
  const rowOf = (row) => open ? h("button", { type: "button", class: "quiet row-link", onclick: (event) => attempt(event.target, () => open(row)) }, row) : h("code", {}, row);
  return h("ul", { class: "findings" }, findings.map(({ severity, rule, message, remedy, rows }) => h(
    "li", { class: "callout", data: { tone: severity === "error" ? "bad" : "warn" } },
    h("p", {}, h("b", {}, severity), ` ${message} `, h("span", { class: "tag" }, rule)), remedy && h("p", { class: "note" }, remedy),
    rows.length > 0 && h("details", {}, h("summary", { class: "note" }, rows.length < 10 ? plural(rows.length, "row") : "some of the rows"), h("p", {}, rows.map((row) => [rowOf(row), " "]))),
  )));
}

// -- figures of a validation

const FIGURES = { // what is said of a histogram, and how its values are written
  area_histogram: ["Size of the objects, in shares of the picture", (share) => (share === 0 ? "0" : share < 0.001 ? `${(100 * share).toPrecision(1)} %` : percent(share))],
  objects_histogram: ["Objects in a frame", number],
};

const isHistogram = (value) => Array.isArray(value?.edges) && Array.isArray(value.counts);

// The histograms among the statistics, drawn; and the statistics without them.
export function histograms(statistics) {
  return Object.entries(statistics).filter(([, value]) => isHistogram(value)).map(([name, value]) => {
    const [title, text] = FIGURES[name] ?? [name.replaceAll("_", " "), number];
    return histogram(title, value, text);
  });
}

export const withoutHistograms = (statistics) => Object.fromEntries(Object.entries(statistics).filter(([, value]) => !isHistogram(value)));

// -- leaks

const SERIOUS = 0.1; // share of a part near training frames from which its scores flatter

// How much of the held-out parts leaks into training: said, and counted by distance.
export function leaks(leakage) {
  const parts = Object.entries(leakage).filter(([, { rows }]) => rows > 0);
  return parts.map(([part, { rows, near, near_share, distances, look_alikes }]) => h(
    "section", { class: "leak", data: { leak: part } }, h("h3", {}, part),
    h(
      "p", { class: "callout", data: { tone: near || look_alikes ? (near_share > SERIOUS ? "bad" : "warn") : "good" } },
      near ? `${number(near)} of ${plural(rows, "frame")} (${percent(near_share)}) lie within two frames of a training frame of the same video.` : "No frame lies within two frames of a training frame of the same video.",
      look_alikes > 0 && ` ${plural(look_alikes, "frame looks", "frames look")} like a training picture.`,
    ),
    h("p", { class: "note" }, "Frames away from the nearest training frame"),
    bars(Object.fromEntries(Object.entries(distances).map(([distance, count]) => [distance === "none" ? "other video" : distance, count]))),
  ));
}

// Both divisions beside one another, part by part.
export function beforeAndAfter({ before, after }) {
  const parts = Object.keys(before).filter((part) => after[part]);
  const head = ["Part", "Near now", "After", "Look-alikes now", "After"];
  return scroller("Before and after", h(
    "table", {}, h("thead", {}, h("tr", {}, head.map((text, place) => h("th", { scope: "col", class: place ? "number" : null }, text)))),
    h("tbody", {}, parts.map((part) => h(
      "tr", {}, h("th", { scope: "row" }, part),
      [percent(before[part].near_share), percent(after[part].near_share), number(before[part].look_alikes), number(after[part].look_alikes)].map((text) => h("td", { class: "number" }, text)),
    ))),
  ));
}
