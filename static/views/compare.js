// Two to ten trainings side by side: which is best and why, their curves over each other, figures and settings.

import * as api from "../api.js";
import { csvOf, differing, labelOf, verdict } from "../comparison.js";
import { Curves } from "../curves.js";
import { h, replace, setText } from "../dom.js";
import { asWritten, duration, number, percent } from "../format.js";
import { drawing, gather, lookups } from "../gather.js";
import { keys } from "../keyboard.js";
import { follow } from "../live.js";
import { copyButton, scroller } from "../parts/pieces.js";
import { badge, isLive, KINDS, nameOf, titleOf } from "../words.js";
import "../elements/line-chart.js";

export const title = "Compare";

const MOST = 10;
const TONES = 8; // from the ninth run on, colours come again with dashed lines
const SMOOTHINGS = { 0: "not smoothed", 0.6: "smoothed", 0.9: "very smooth" };
const HEARD = [
  "metrics.logged", "training.resumed", "job.placed", "job.started", "job.interrupted", "job.paused", "job.resume_requested",
  "job.cancel_requested", "job.completed", "job.failed", "job.cancelled",
];
const SERIES = { // in the order of the picker; what is not named here comes after, by its own name
  train_loss: { label: "Train loss" }, eval_loss: { label: "Eval loss" }, eval_accuracy: { label: "Eval accuracy", isShare: true },
  eval_exact_match: { label: "Exact match", isShare: true }, eval_json_validity: { label: "Valid JSON", isShare: true },
  eval_box_iou: { label: "Box overlap", isShare: true }, eval_box_iou_50: { label: "Boxes that overlap by half", isShare: true },
  learning_rate: { label: "Learning rate" }, grad_norm: { label: "Gradient norm" },
  tokens_per_s: { label: "Throughput", unit: "tokens/s" }, memory_mb: { label: "Memory", unit: "MB" },
};
const FIGURES = { // `whole`: only of completed trainings is one the best, since one that was cancelled early took least
  best_eval_loss: { label: "Best eval loss", text: number, best: Math.min },
  best_eval_accuracy: { label: "Best accuracy", text: percent, best: Math.max },
  final_train_loss: { label: "Final train loss", text: number, best: Math.min, whole: true },
  duration: { label: "Duration", text: duration, best: Math.min, whole: true },
  peak_memory_mb: { label: "Peak memory, MB", text: number, best: Math.min, whole: true },
  total_steps: { label: "Steps planned", text: number },
};

export function render(root, { query, set }) {
  let runs = []; // { id, name, job, curves, tone, dashed }
  let strangers = []; // { id, trouble }: asked for, but no experiment
  let others = []; // summaries to choose from
  let figures = {}; // figure → id → value
  const look = lookups(take, () => stopListening.reload()); // one that was deleted is said to be
  const figuresSoon = gather(async () => {
    const asked = runs;
    const values = await figuresOf(asked);
    if (runs !== asked) return; // another choice has its own
    figures = values;
    drawWords();
  });
  const drawSoon = drawing(() => {
    drawPicker();
    drawPlot();
  });

  const chips = h("ul", { class: "runs", "aria-label": "Compared experiments" });
  const troubles = h("div");
  const loading = h("p", { class: "loading" }, "Loading …");
  const few = h("div", { class: "empty", hidden: true });
  const said = h("section", { class: "card conclusion", "aria-label": "Verdict" });
  const adder = h("select", { "aria-label": "Add an experiment", onchange: () => add(adder.value) });
  const metric = h("select", { "aria-label": "Metric", data: { field: "metric" }, onchange: () => view({ metric: metric.value }) });
  const over = choice("Horizontal axis", { step: "over steps", epoch: "over epochs" }, "x");
  const smooth = choice("Smoothing", SMOOTHINGS, "smooth");
  const log = h("button", { type: "button", "aria-pressed": String(query.get("log") === "1"), onclick: toggleLog }, "Log scale");
  const plot = h("div");
  const table = scroller("Figures");
  const config = scroller("Settings");
  const counted = h("span", { class: "note" });
  const all = h("input", { type: "checkbox", checked: query.get("all") === "1", onchange: () => { set({ all: all.checked ? "1" : "" }); drawConfig(); } });
  const body = h(
    "div", { class: "comparison", hidden: true },
    said,
    h("section", { class: "card" }, h("div", { class: "card-head" }, h("h2", {}, "Curves"), metric, over, smooth, log), plot),
    h("section", { class: "card" }, h("div", { class: "card-head" }, h("h2", {}, "Figures"), h("button", { type: "button", class: "last", onclick: download }, "Download CSV")), table),
    h("section", { class: "card" }, h("div", { class: "card-head" }, h("h2", {}, "Settings"), counted, h("label", { class: "last" }, all, "all settings")), config),
  );
  root.append(
    h("div", { class: "head" }, h("h1", {}, "Compare"), h("a", { href: "#/experiments" }, "All experiments"), copyButton("Copy link", () => location.href, () => "The browser lets no page copy without https: take the link from the address bar.")),
    chips, troubles, loading, few, body,
  );

  const stopKeys = keys({
    l: ["Logarithmic scale", toggleLog],
    s: ["Smooth the curves", () => { smooth.selectedIndex = (smooth.selectedIndex + 1) % smooth.options.length; smooth.dispatchEvent(new Event("change")); }],
  });
  const stopListening = follow({ types: HEARD, load, onEvents: (events) => events.forEach(({ event }) => hear(event)) });
  return () => {
    stopKeys();
    stopListening();
    drawSoon.stop();
    figuresSoon.stop();
  };

  // -- which are compared

  function ids() {
    return [...new Set((query.get("ids") ?? "").split(",").filter(Boolean))];
  }

  async function load(isNewest) {
    const [found, listed] = await Promise.all([Promise.all(ids().slice(0, MOST).map(lookUp)), api.get("/experiments", { limit: 200 })]);
    const known = distinct(found.filter(({ job }) => job));
    const values = await figuresOf(known);
    if (!isNewest()) return;
    strangers = found.filter(({ trouble }) => trouble);
    [runs, others, figures] = [known, listed, values];
    draw();
  }

  async function lookUp(id) {
    try {
      const job = await api.job(id);
      if (job.kind !== "finetune") return { id, trouble: `${titleOf(job)} (${KINDS[job.kind].toLowerCase()}) is no training and cannot be compared.` };
      return { id, job, curves: Curves.of(await api.get(`/experiments/${encodeURIComponent(id)}/metrics`)) };
    } catch (error) {
      if (error.status !== 404) throw error;
      return { id, trouble: `There is no experiment ${id} here. It may have been deleted.` };
    }
  }

  async function figuresOf(chosen) {
    if (chosen.length < 2) return {};
    const answer = await api.post("/experiments/compare", { experiment_ids: chosen.map(({ id }) => id), metrics: Object.keys(FIGURES) });
    return answer.comparison_table;
  }

  function add(id) {
    if (!id) return;
    set({ ids: [...ids(), id].join(",") });
    stopListening.reload(); // events of the new one count from its snapshot on
  }

  function leaveOut(id) {
    set({ ids: ids().filter((each) => each !== id).join(",") });
    runs = distinct(runs.filter((run) => run.id !== id));
    strangers = strangers.filter((each) => each.id !== id);
    draw();
    adder.focus();
  }

  // -- what changes

  function hear(event) {
    const run = runs.find(({ id }) => id === event.job_id);
    if (!run) return;
    if (event.type === "metrics.logged") run.curves.add(event);
    else if (event.type === "training.resumed") run.curves.voidBeyond(event.step);
    if (event.type !== "metrics.logged" || "eval_loss" in event.values) look.quietly(run.id);
    drawSoon();
  }

  function take(job) {
    runs.filter(({ id }) => id === job.job_id).forEach((run) => (run.job = job));
    drawWords();
    figuresSoon();
  }

  // -- drawing

  function draw() {
    const isEnough = runs.length >= 2;
    loading.hidden = true;
    body.hidden = !isEnough;
    few.hidden = isEnough;
    drawTroubles();
    drawWords();
    if (!isEnough) return replace(few, ...tooFew());
    drawPicker();
    drawPlot();
  }

  function drawWords() {
    drawChips();
    if (runs.length < 2) return;
    const [headline, ...more] = verdict(runs.map(judged));
    replace(said, h("h2", { class: "headline" }, headline), more.length > 0 && h("p", {}, more.join(" ")));
    drawFigures();
    drawConfig();
  }

  function judged({ name, job }) {
    const { best_eval_loss: eval_loss, best_eval_accuracy: eval_accuracy, train_loss, result } = job;
    return { name, isLive: isLive(job), config: job.spec.config, eval_loss, eval_accuracy, train_loss: result?.final_train_loss ?? train_loss };
  }

  function drawChips() {
    const statuses = runs.map(({ id, job, tone }) => `${id} ${job.status} ${tone}`).join();
    if (chips.dataset.statuses === statuses) return; // the focus stays
    chips.dataset.statuses = statuses;
    const taken = ids();
    replace(adder, h("option", { value: "" }, "Add an experiment …"), others.filter(({ experiment_id }) => !taken.includes(experiment_id)).map((each) => h("option", { value: each.experiment_id }, `${nameOf(each)} · ${each.experiment_id.slice(-6)}`)));
    adder.hidden = adder.options.length < 2 || taken.length >= MOST;
    replace(chips, runs.map(chip), h("li", {}, adder));
  }

  function chip({ id, name, job, tone }) {
    return h(
      "li", { class: "run", data: { id }, style: { "--tone": `var(--series-${tone})` } },
      h("a", { href: `#/job/${id}` }, name), badge(job.status),
      h("button", { type: "button", class: "quiet icon", "aria-label": `Leave out ${name}`, title: "Leave out", onclick: () => leaveOut(id) }, "✕"),
    );
  }

  function drawTroubles() {
    const surplus = ids().length - MOST;
    replace(
      troubles,
      strangers.map(({ id, trouble }) => h("p", { class: "callout" }, trouble, " ", h("button", { type: "button", onclick: () => leaveOut(id) }, "Leave it out"))),
      surplus > 0 && h("p", { class: "callout" }, `At most ${MOST} experiments are compared: the last ${surplus} of the address are left out.`),
    );
  }

  function tooFew() {
    return [
      h("h2", {}, runs.length ? "One more is needed" : "Nothing to compare yet"),
      h("p", {}, others.length > 1 ? "Add an experiment above, or choose some in the list." : "Two trainings are needed: start another one with different settings."),
      h("p", { class: "actions" }, h("a", { class: "button primary", href: "#/experiments" }, "Choose experiments"), h("a", { class: "button", href: "#/train" }, "New training")),
    ];
  }

  // -- curves

  function choice(label, words, field) {
    const [usual] = Object.keys(words);
    const select = h("select", { "aria-label": label, data: { field }, onchange: () => view({ [field]: select.value === usual ? "" : select.value }) },
      Object.entries(words).map(([value, text]) => h("option", { value, selected: value === (query.get(field) ?? usual) }, text)));
    return select;
  }

  function toggleLog() {
    const isOn = log.getAttribute("aria-pressed") !== "true";
    log.setAttribute("aria-pressed", String(isOn));
    view({ log: isOn ? "1" : "" });
  }

  // What the person looks at stands in the address.
  function view(changes) {
    set(changes);
    drawPlot();
  }

  function drawPicker() {
    const logged = new Set(runs.flatMap(({ curves }) => curves.names));
    const names = [...Object.keys(SERIES).filter((name) => logged.has(name)), ...[...logged].filter((name) => !(name in SERIES)).sort()];
    if (metric.dataset.names === names.join()) return;
    metric.dataset.names = names.join();
    const wanted = [query.get("metric"), "eval_loss", "train_loss"].find((name) => logged.has(name));
    replace(metric, names.map((name) => h("option", { value: name, selected: name === wanted }, seriesOf(name).label)));
  }

  function drawPlot() {
    const { label, unit = "", isShare } = seriesOf(metric.value);
    if (plot.firstChild?.getAttribute("label") !== label) replace(plot, h("line-chart", { label }));
    const lines = runs.map(({ id, name, curves, tone, dashed }) => ({ key: id, label: name, tone, dashed, ...curves.line(metric.value, over.value) }));
    plot.firstChild.show({ x: over.value, unit, isShare, log: log.getAttribute("aria-pressed") === "true", smooth: Number(smooth.value), lines });
  }

  // -- figures and settings

  function head(isNumber) {
    return h("thead", {}, h("tr", {}, h("td"), runs.map(({ name, tone, dashed }) => h(
      "th", { scope: "col", class: isNumber ? "number" : null, style: { "--tone": `var(--series-${tone})`, "--dash": dashed ? "dashed" : "solid" } },
      h("span", { class: "name", title: name }, name),
    ))));
  }

  function drawFigures() {
    replace(table, h("table", { class: "side-by-side" }, head(true), h("tbody", {}, Object.keys(FIGURES).map(figureRow))));
  }

  function figureRow(key) {
    const { label, text, best, whole } = FIGURES[key];
    const values = runs.map(({ id }) => figures[key]?.[id] ?? null);
    const known = values.filter((value, at) => value !== null && (!whole || runs[at].job.status === "completed"));
    const winner = best && new Set(known).size > 1 ? best(...known) : undefined;
    return h("tr", { data: { field: key } }, h("th", { scope: "row" }, label), values.map((value) => h("td", { class: value === winner ? "number best" : "number" }, text(value))));
  }

  function drawConfig() {
    const configs = runs.map(({ job }) => job.spec.config);
    const different = new Set(differing(configs));
    const names = Object.keys(configs[0]).filter((name) => all.checked || different.has(name));
    setText(counted, different.size ? `${different.size} of ${Object.keys(configs[0]).length} differ; marked where unlike the first` : "all are the same");
    const row = (name) => h("tr", { class: different.has(name) ? "differs" : null, data: { field: name } }, h("th", { scope: "row" }, labelOf(name)), configs.map((config) => {
      const text = asWritten(config[name]);
      return h("td", { class: text !== asWritten(configs[0][name]) ? "unlike" : null }, text);
    }));
    replace(config, names.length > 0 && h("table", { class: "side-by-side" }, head(false), h("tbody", {}, names.map(row))));
  }

  function download() {
    const rows = runs.map(({ id, job }) => [id, titleOf(job), job.status, ...Object.keys(FIGURES).map((key) => figures[key]?.[id] ?? null)]);
    const address = URL.createObjectURL(new Blob([csvOf([["experiment_id", "name", "status", ...Object.keys(FIGURES)], ...rows])], { type: "text/csv" }));
    h("a", { href: address, download: "comparison.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  }

}

// Told apart by colour, by dashes and by name: where two are named alike, the end of the id is part of it.
function distinct(runs) {
  const names = runs.map(({ job }) => titleOf(job));
  const isTwice = (name) => names.filter((each) => each === name).length > 1;
  return runs.map((run, at) => ({ ...run, name: isTwice(names[at]) ? `${names[at]} · ${run.id.slice(-6)}` : names[at], tone: at % TONES, dashed: at >= TONES }));
}

function seriesOf(name) {
  return SERIES[name] ?? { label: labelOf(name) };
}
