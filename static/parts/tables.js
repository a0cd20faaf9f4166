// The tables of a training: its checkpoints, and the settings it was made with.

import { get } from "../api.js";
import { h, replace } from "../dom.js";
import { asWritten, bytes, number, percent, plural } from "../format.js";
import { isLive } from "../words.js";
import { facts, scroller } from "./pieces.js";
import "../elements/time-ago.js";

// → { element, load(events), hear(event), update(job) }
export function checkpoints() {
  const found = new Map(); // path → event
  let best = null;
  const body = scroller("Checkpoints");
  const element = h("section", { class: "card", id: "checkpoints" }, h("h2", {}, "Checkpoints"), body);
  draw();
  return { element, load, hear, update };

  function load(events) {
    found.clear();
    events.forEach(take);
    draw();
  }

  function hear(event) {
    if (take(event)) draw();
  }

  function take(event) {
    if (event.type === "checkpoint.saved") found.set(event.path, event);
    else if (event.type === "checkpoint.removed") found.delete(event.path);
    else return false;
    return true;
  }

  function update(job) {
    element.hidden = !isLive(job) && found.size === 0;
    if (job.result?.best_checkpoint_path === best) return;
    best = job.result?.best_checkpoint_path ?? null;
    draw();
  }

  function draw() {
    const rows = [...found.values()].sort((a, b) => b.step - a.step);
    if (rows.length === 0) return replace(body, h("p", { class: "note" }, "None is kept. The first is written after as many steps as “save every” says, and at the end."));
    const names = [...new Set(rows.flatMap(({ metrics = {} }) => Object.keys(metrics)))];
    const bestPath = best ?? bestOf(rows);
    const cell = (value) => h("td", { class: "number" }, value);
    replace(body, h(
      "table", {},
      h("thead", {}, h("tr", {}, ["Step", ...names.map((name) => name.replaceAll("_", " ")), "Size"].map((name) => h("th", { scope: "col", class: "number" }, name)), h("th", { scope: "col" }, "Saved"), h("th", { scope: "col" }, "Where"))),
      h("tbody", {}, rows.map(({ step, path, bytes: size, metrics = {}, at }) => h(
        "tr", { data: { best: String(path === bestPath) } },
        h("th", { scope: "row", class: "number" }, path === bestPath && h("span", { class: "tag" }, "best"), ` ${number(step)}`),
        names.map((name) => cell(name.endsWith("accuracy") ? percent(metrics[name]) : number(metrics[name]))), cell(bytes(size)), h("td", {}, h("time-ago", { datetime: at })), h("td", {}, h("code", {}, path)),
      ))),
    ));
  }
}

function bestOf(rows) {
  const measured = rows.filter(({ metrics }) => metrics?.eval_loss !== undefined);
  return measured.sort((a, b) => a.metrics.eval_loss - b.metrics.eval_loss)[0]?.path;
}

// → { element }. What differs from the defaults comes first: it is what makes this training this one.
export function configuration(config) {
  const body = h("div", { class: "configuration" });
  const element = h("section", { class: "card", id: "settings" }, h("h2", {}, "Settings"), body);
  fill({});
  get("/schemas/finetune").then((schema) => fill(schema.$defs.TrainingConfig.properties)).catch(() => {}); // names will do
  return { element };

  function fill(fields) {
    const known = Object.entries(config).map(([name, value]) => ({ name, value, field: fields[name] }));
    const isChosen = ({ value, field }) => !field || !("default" in field) || JSON.stringify(field.default) !== JSON.stringify(value);
    const [chosen, usual] = [known.filter(isChosen), known.filter((each) => !isChosen(each))];
    replace(body, listOf(chosen, true), usual.length > 0 && h("details", {}, h("summary", {}, plural(usual.length, "setting"), " with the default value"), listOf(usual, false)));
  }

  function listOf(entries, isChosen) {
    return facts(entries.map(({ name, value, field }) => [h("span", { title: name }, field?.title ?? name), isChosen ? h("b", {}, asWritten(value)) : asWritten(value)]));
  }
}
