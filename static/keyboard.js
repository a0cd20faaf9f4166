// Keys: a view says which it takes while it is shown; "?" lists those that work now.

import { h } from "./dom.js";

const layers = []; // the innermost view's keys win

// keys({ "/": ["Search", run], … }) → stop()
export function keys(bindings) {
  layers.push(bindings);
  return () => layers.splice(layers.indexOf(bindings), 1);
}

// Moving through the rows of a list: j and k, from wherever the focus is.
export function listKeys(rows, further = {}) {
  const step = (by) => () => {
    const all = rows();
    const at = all.findIndex((row) => row.contains(document.activeElement));
    all[Math.min(all.length - 1, Math.max(0, at + by))]?.querySelector("a, button")?.focus();
  };
  return keys({ j: ["Next row", step(+1)], k: ["Previous row", step(-1)], ...further });
}

export function showHelp() {
  const known = layers.flatMap((bindings) => Object.entries(bindings));
  const dialog = h(
    "dialog", { class: "help", "aria-labelledby": "help-title", onclose: () => dialog.remove() },
    h("h2", { id: "help-title" }, "Keys"),
    h("dl", {}, known.flatMap(([key, [text]]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, text)])),
    h("p", { class: "note" }, "The API behind this page: ", h("a", { href: "/docs" }, "try it"), " · ", h("a", { href: "/redoc" }, "read it"), "."),
    h("form", { method: "dialog" }, h("button", { autofocus: true }, "Close")),
  );
  document.body.append(dialog);
  dialog.showModal();
}

addEventListener("keydown", (event) => {
  const isWriting = event.target.closest?.("input:not([type=checkbox]):not([type=radio]), textarea, select, [contenteditable]");
  if (event.key === "Escape" && isWriting) event.target.blur();
  if (isWriting || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const binding = layers.findLast((bindings) => event.key in bindings)?.[event.key];
  if (!binding) return;
  event.preventDefault();
  binding[1]();
});
