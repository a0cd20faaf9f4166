// What a training learns of its rows: each row's text in pieces, the trained ones marked, pictures as their count of tokens.

import { address } from "../api.js";
import { h } from "../dom.js";
import { number, plural } from "../format.js";

const REASONS = { first: "of the first rows", longest: "of the longest rows", asked: "asked for" };

// Of the result of a preview job: → the sections to show.
export function previewOf({ rows, message, truncated }) {
  return [
    h("p", { class: truncated ? "callout" : "note" }, message),
    h("p", { class: "note" }, "The model learns the ", h("mark", { class: "trained" }, "marked"), " text, and reads the rest."),
    h("ul", { class: "previews" }, rows.map(previewedRow)),
  ];
}

function previewedRow({ row_id, reason, pieces, tokens, tokens_uncut, trained_tokens, image_tokens, images, is_truncated }) {
  const counts = [plural(tokens, "token"), `${number(trained_tokens)} trained`, image_tokens > 0 && `${number(image_tokens)} of pictures`];
  return h(
    "li", { data: { row: row_id } },
    h("p", {}, h("b", {}, row_id), h("span", { class: "note" }, ` ${REASONS[reason]} · ${counts.filter(Boolean).join(" · ")}`)),
    is_truncated && h("p", { class: "callout" }, `It has ${plural(tokens_uncut, "token")}: the last ${number(tokens_uncut - tokens)} are cut off.`),
    images.map((path) => h("img", { src: address("/data/image", { path }), alt: `Picture of row ${row_id}`, loading: "lazy" })),
    h("p", { class: "pieces" }, pieces.map(piece)),
  );
}

function piece({ text, tokens, is_trained, is_image }) {
  if (is_image) return h("span", { class: "image-piece" }, `▣ ${plural(tokens, "image token")}`);
  return is_trained ? h("mark", { class: "trained" }, text) : text;
}
