// The plots of a training: its curves loaded once, every logged step added, all plots steered by one toolbar.

import "../elements/line-chart.js";
import { get } from "../api.js";
import { Curves } from "../curves.js";
import { h, setText } from "../dom.js";
import { drawing } from "../gather.js";
import { keys } from "../keyboard.js";
import { isLive } from "../words.js";

const PLOTS = [
  { label: "Loss", canLog: true, lines: [["train_loss", "train loss", 0], ["eval_loss", "eval loss", 1]] },
  { label: "Eval accuracy", isShare: true, lines: [["eval_accuracy", "eval accuracy", 2], ["eval_exact_match", "exact match", 6], ["eval_json_validity", "valid JSON", 3], ["eval_box_iou", "box overlap", 4], ["eval_box_iou_50", "boxes that overlap by half", 5]] },
  { label: "Learning rate", canLog: true, lines: [["learning_rate", "learning rate", 3]] },
  { label: "Gradient norm", canLog: true, lines: [["grad_norm", "gradient norm", 5]] },
  { label: "Throughput", unit: "tokens per second", lines: [["tokens_per_s", "throughput", 6]] },
  { label: "Memory", unit: "MB", lines: [["memory_mb", "memory", 4]] },
];
const SMOOTHED = new Set(["train_loss", "grad_norm", "tokens_per_s"]); // the others are rare or exact
const USUAL_SMOOTHING = 0.6;

// → { element, load(), hear(event), update(job), stop() }
export function plots(job, { query, set }) {
  let curves = new Curves();
  let smooth = Math.min(0.95, Number(query.get("smooth")) || 0);
  let log = query.get("log") === "1";
  const shown = PLOTS.filter(({ label }) => label !== "Eval accuracy" || job.spec.config.val_data_path).map((plot) => ({ ...plot, chart: h("line-chart", { label: plot.label }) }));

  const logButton = h("button", { type: "button", title: "l", onclick: toggleLog }, "Log scale");
  const slider = h("input", { type: "range", id: "smoothing", min: 0, max: 0.95, step: 0.05, oninput: () => setSmooth(Number(slider.value)) });
  const amount = h("span", { class: "amount" });
  const axis = h("select", { "aria-label": "Horizontal axis", onchange: redraw }, ["step", "epoch"].map((word) => h("option", { value: word, selected: word === query.get("x") }, `by ${word}`)));
  const toolbar = h("div", { class: "toolbar", role: "group", "aria-label": "All curves" }, logButton, h("label", { for: "smoothing", title: "s" }, "Smoothing"), slider, amount, axis);
  const grid = h("div", { class: "plots" }, shown.map(({ chart }) => chart));
  const none = h("p", { class: "note", hidden: true }, "It ended before its first step was logged.");
  const element = h("section", { class: "card", id: "curves" }, h("div", { class: "head" }, h("h2", {}, "Curves"), toolbar), none, grid);
  const drawSoon = drawing(draw);
  const stopKeys = keys({ l: ["Curves: log scale", toggleLog], s: ["Curves: smoothing", () => setSmooth(smooth ? 0 : USUAL_SMOOTHING)] });
  draw();
  return { element, load, hear, update, stop };

  function stop() {
    stopKeys();
    drawSoon.stop();
  }

  async function load() {
    const answer = await get(`/experiments/${encodeURIComponent(job.job_id)}/metrics`);
    curves = Curves.of(answer);
    draw();
  }

  function hear(event) {
    if (event.type === "metrics.logged") curves.add(event);
    else if (event.type === "training.resumed") curves.voidBeyond(event.step);
    else return;
    drawSoon();
  }

  function update(now) {
    const isNothing = !isLive(now) && curves.names.length === 0;
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
    slider.setAttribute("aria-valuetext", smooth ? smooth.toFixed(2) : "off");
    setText(amount, smooth ? smooth.toFixed(2) : "off");
    for (const { chart, unit, isShare, canLog, lines } of shown) {
      chart.show({ x: axis.value, unit, isShare, log: log && canLog, smooth, lines: lines.filter(([name], n) => n === 0 || name === "eval_loss" || curves.names.includes(name)).map(([name, label, tone]) => ({ key: name, label, tone, dashed: name === "eval_loss", smooth: SMOOTHED.has(name), ...curves.line(name, axis.value) })) });
    }
  }
}
