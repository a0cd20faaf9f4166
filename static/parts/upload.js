// A file on its way to the service: dropped or chosen, refused where it cannot be an export, sent with a bar.

import * as api from "../api.js";
import { h, setText } from "../dom.js";
import { bytes, duration } from "../format.js";

// → { element, stop }. A file may be dropped anywhere: one that missed the zone would replace the page.
export function dropZone(onFile) {
  const input = h("input", { type: "file", accept: ".zip", id: "export-file", onchange: () => take(input.files) });
  const element = h(
    "label", { class: "drop", for: "export-file" },
    h("b", {}, "Drop the ZIP of a SAM2 export here"), input, h("span", { class: "button" }, "Choose a file"),
    h("span", { class: "note" }, "It is uploaded, converted, checked and divided in one go."),
  );
  const aim = (isOver) => element.classList.toggle("over", isOver);
  const take = ([file]) => {
    if (file) onFile(file);
    input.value = ""; // so that the same file can be chosen again
  };
  const stopping = new AbortController();
  const listen = (type, hear) => document.addEventListener(type, hear, { signal: stopping.signal });
  listen("dragover", (event) => {
    event.preventDefault();
    aim(true);
  });
  listen("dragleave", (event) => event.relatedTarget || aim(false)); // it left the window
  listen("drop", (event) => {
    event.preventDefault();
    aim(false);
    take(event.dataTransfer.files);
  });
  return { element, stop: () => stopping.abort() };
}

// Why a file is not sent at all; empty when it is.
export function refusalOf({ name, size }) {
  if (!/\.zip$/i.test(name)) return `${name} is not a ZIP archive. Choose the ZIP that the annotation tool exported.`;
  return size === 0 ? `${name} is empty. Export it again.` : "";
}

// → { element, answer, cancel }
export function upload(file) {
  const cancelling = new AbortController();
  const begun = Date.now();
  const bar = h("progress", { max: file.size, value: 0, "aria-label": `Upload of ${file.name}` });
  const figures = h("span", { class: "note" });
  const cancel = () => cancelling.abort();
  const element = [bar, h("div", { class: "line" }, figures, h("button", { type: "button", onclick: cancel }, "Cancel upload"))];
  const onSent = (sent) => {
    bar.value = sent;
    setText(figures, sent < file.size ? `${bytes(sent)} of ${bytes(file.size)}${pace(sent, (Date.now() - begun) / 1000)}` : "All is sent; the service checks it.");
  };
  const pace = (sent, took) => took > 1 ? ` · ${bytes(sent / took)}/s · ${duration((file.size - sent) * took / sent)} left` : "";
  return { element, answer: api.upload(file, onSent, cancelling.signal), cancel };
}
