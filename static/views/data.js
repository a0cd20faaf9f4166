// Data: an export becomes a dataset here, and the datasets there are. #/data/<name> is one of them.

import * as api from "../api.js";
import { h, replace, setText } from "../dom.js";
import { plural } from "../format.js";
import { listKeys } from "../keyboard.js";
import { gather } from "../gather.js";
import { follow } from "../live.js";
import { datasetAddress, splitBar, validationBadge } from "../parts/dataset-parts.js";
import { reportLink, splitButton, useLink, validateButton } from "../parts/dataset-actions.js";
import { classBars } from "../parts/pieces.js";
import { HEARD, prepare } from "../parts/prepare.js";
import "../elements/time-ago.js";
import { renderDataset } from "./dataset.js";

export const title = "Data";

const ENDS = ["job.completed", "job.failed", "job.cancelled"];

export function render(root, params) {
  return params.parts.length ? renderDataset(root, params) : renderAll(root, params);
}

function renderAll(root, { query, set }) {
  let datasets = [];
  const flow = prepare({ query, set, datasets: () => datasets });
  const count = h("span", { class: "note" });
  const list = h("ul", { class: "rows", "aria-label": "Datasets, newest first" });
  const empty = h("p", { class: "empty", hidden: true }, "No dataset yet. Drop an export above; it takes a minute.");
  root.append(
    h("div", { class: "head" }, h("h1", {}, "Data")), flow.element,
    h("div", { class: "head datasets" }, h("h2", {}, "Datasets"), count), list, empty,
  );

  const leaving = new AbortController();
  const stopKeys = listKeys(() => [...list.children]);
  const lookAgain = gather(loadList);
  const stopListening = follow({ types: HEARD, load, onEvents });
  return () => {
    leaving.abort();
    lookAgain.stop();
    stopKeys();
    stopListening();
    flow.stop();
  };

  async function load() {
    await loadList();
    await flow.load();
  }

  async function loadList() {
    ({ datasets } = await api.get("/data/datasets"));
    const focused = document.activeElement.closest?.("[data-action]")?.dataset.action; // the rows are made anew
    const row = document.activeElement.closest?.("[data-name]")?.dataset.name;
    replace(list, datasets.map((dataset) => rowOf(dataset, datasets, leaving.signal)));
    if (row && focused) list.querySelector(`[data-name="${CSS.escape(row)}"] [data-action="${focused}"]`)?.focus();
    setText(count, datasets.length ? plural(datasets.length, "dataset") : "");
    empty.hidden = datasets.length > 0;
  }

  function onEvents(events) {
    for (const { event } of events) {
      flow.hear(event);
      if (ENDS.includes(event.type)) lookAgain();
    }
  }
}

function rowOf(dataset, datasets, leaving) {
  const { name, data_path, num_samples, format, task, labels, split, validation, created_at } = dataset;
  const splits = datasets.filter((other) => other.split?.source === data_path);
  return h(
    "li", { class: "row dataset", data: { name } },
    h(
      "div", { class: "what" },
      h("a", { class: "title", href: datasetAddress(name), title: data_path }, name),
      h("span", { class: "note" }, [plural(num_samples, "row"), task, format].filter(Boolean).join(" · ")),
      h("span", { class: "note" }, h("time-ago", { datetime: created_at })),
    ),
    h("div", { class: "how" }, validationBadge(validation), split ? splitBar(split) : h("span", { class: "note" }, splits.length ? ["divided into ", splits.map(({ name }, at) => [at > 0 && ", ", h("a", { href: datasetAddress(name) }, name)])] : "not split")),
    Object.keys(labels).length ? classBars(labels, 3) : h("span", { class: "note" }, "classes unknown"),
    h("div", { class: "actions" }, useLink(dataset), !split && splitButton(dataset, leaving), validateButton(dataset, leaving), reportLink(dataset)),
  );
}
