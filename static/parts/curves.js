// The curves of a training: columns loaded once, every logged step appended, all plots steered by one toolbar.

import "../elements/line-chart.js";
import { get } from "../api.js";
import { h, setText } from "../dom.js";
import { keys } from "../keyboard.js";
import { isLive } from "../words.js";

const PLOTS = [
  { label: "Loss", canLog: true, lines: [["train_loss", "train loss", 0], ["eval_loss", "eval loss", 1]] },
  { label: "Eval accuracy", lines: [["eval_accuracy", "eval accuracy", 2]] },
  { label: "Learning rate", canLog: true, lines: [["learning_rate", "learning rate", 3]] },
  { label: "Gradient norm", canLog: true, lines: [["grad_norm", "gradient norm", 5]] },
  { label: "Throughput", unit: "tokens per second", lines: [["tokens_per_s", "throughput", 6]] },
  { label: "Memory", unit: "MB", lines: [["memory_mb", "memory", 4]] },
];
const SMOOTHED = new Set(["train_loss", "grad_norm", "tokens_per_s"]); // the others are rare or exact
const USUAL_SMOOTHING = 0.6;

// → { element, load(), hear(event), update(job), stop() }
export function curves(job, { query, set }) {
  let table = new Columns({ steps: [], epochs: [] }, {});
  let smooth = Math.min(0.95, Number(query.get("smooth")) || 0);
  let log = query.get("log") === "1";
  const plots = PLOTS.filter(({ label }) => label !== "Eval accuracy" || job.spec.config.val_data_path).map((plot) => ({ ...plot, chart: h("line-chart", { label: plot.label }) }));

  const logButton = h("button", { type: "button", title: "l", onclick: toggleLog }, "Log scale");
  const slider = h("input", { type: "range", id: "smoothing", min: 0, max: 0.95, step: 0.05, oninput: () => setSmooth(Number(slider.value)) });
  const amount = h("output", { for: "smoothing" });
  const axis = h("select", { "aria-label": "Horizontal axis", onchange: redraw }, ["step", "epoch"].map((word) => h("option", { value: word, selected: word === query.get("x") }, `by ${word}`)));
  const toolbar = h("div", { class: "toolbar", role: "group", "aria-label": "All curves" }, logButton, h("label", { for: "smoothing", title: "s" }, "Smoothing"), slider, amount, axis);
  const grid = h("div", { class: "plots" }, plots.map(({ chart }) => chart));
  const none = h("p", { class: "note", hidden: true }, "It ended before its first step was logged.");
  const element = h("section", { class: "card", id: "curves" }, h("div", { class: "head" }, h("h2", {}, "Curves"), toolbar), none, grid);
  const stop = keys({ l: ["Curves: log scale", toggleLog], s: ["Curves: smoothing", () => setSmooth(smooth ? 0 : USUAL_SMOOTHING)] });
  draw();
  return { element, load, hear, update, stop };

  async function load() {
    const answer = await get(`/experiments/${encodeURIComponent(job.job_id)}/metrics`);
    table = new Columns(answer.metrics, answer.not_finite);
    draw();
  }

  function hear(event) {
    if (event.type === "metrics.logged") table.append(event);
    else if (event.type === "training.resumed") table.forgetBeyond(event.step);
    else return;
    draw();
  }

  function update(now) {
    const isNothing = !isLive(now) && table.steps.length === 0;
    none.hidden = !isNothing;
    grid.hidden = toolbar.hidden = isNothing;
  }

  function toggleLog() {
    log = !log;
    redraw();
  }

  function setSmooth(value) {
    smooth = value;
    redraw();
  }

  function redraw() {
    set({ log: log && "1", smooth: smooth && String(smooth), x: axis.value !== "step" && axis.value });
    draw();
  }

  function draw() {
    logButton.setAttribute("aria-pressed", log);
    slider.value = smooth;
    setText(amount, smooth ? smooth.toFixed(2) : "off");
    const x = table.axis(axis.value);
    for (const { chart, unit, canLog, lines } of plots) {
      chart.show({ x: axis.value, unit, log: log && canLog, smooth, lines: lines.map(([name, label, tone]) => ({ key: name, label, tone, dashed: name === "eval_loss", smooth: SMOOTHED.has(name), x, y: table.series(name), notFinite: table.notFinite(name, axis.value) })) });
    }
  }
}

// Parallel lists, one place a step. Keyed by step, so that hearing an event twice changes nothing.
class Columns {
  constructor({ steps, epochs, ...series }, lost = {}) {
    this.steps = steps;
    this.epochs = epochs;
    this.named = new Map(Object.entries(series));
    this.lost = new Map(Object.entries(lost).map(([name, places]) => [name, new Set(places)]));
  }

  append({ step, epoch, values, not_finite: lost = {} }) {
    const place = this.placeOf(step);
    if (epoch !== undefined) this.epochs[place] = epoch;
    for (const [name, value] of Object.entries(values)) this.series(name)[place] = value;
    for (const name of Object.keys(lost)) {
      if (!this.lost.has(name)) this.lost.set(name, new Set());
      this.lost.get(name).add(step);
    }
  }

  placeOf(step) {
    let place = this.steps.length;
    while (place > 0 && this.steps[place - 1] >= step) place--; // the newest step comes last, nearly always
    if (this.steps[place] === step) return place;
    this.steps.splice(place, 0, step);
    for (const column of [this.epochs, ...this.named.values()]) column.splice(place, 0, null);
    return place;
  }

  forgetBeyond(step) {
    const kept = this.steps.filter((each) => each <= step).length;
    for (const column of [this.steps, this.epochs, ...this.named.values()]) column.length = kept;
    for (const places of this.lost.values()) for (const each of places) if (each > step) places.delete(each);
  }

  series(name) {
    if (!this.named.has(name)) this.named.set(name, new Array(this.steps.length).fill(null));
    return this.named.get(name);
  }

  // Epochs are not told with every step: one that is missing stands between its neighbours.
  axis(kind) {
    if (kind === "step") return this.steps;
    let last = 0;
    return this.epochs.map((epoch) => (last = epoch ?? last));
  }

  notFinite(name, kind) {
    const x = this.axis(kind);
    return [...(this.lost.get(name) ?? [])].sort((a, b) => a - b).map((step) => x[this.steps.indexOf(step)]).filter((place) => place !== undefined);
  }
}
