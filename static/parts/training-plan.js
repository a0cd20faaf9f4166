// What a training would take: its memory as a bar against the devices, how long it lasts, what is doubtful, and what
// would make it fit, each with a button that puts it into the form.

import * as api from "../api.js";
import { h, replace } from "../dom.js";
import { asWritten, duration, number, plural } from "../format.js";
import { attempt } from "../notices.js";
import { facts } from "./pieces.js";

const GIB = 2 ** 30;
const BASES = { arithmetic: "by arithmetic", history: "corrected by earlier runs", probe: "measured by the probe" };

// `values()` is the body of the request, `check()` says whether it can be sent, `apply(config)` changes the form.
export function trainingPlan({ values, check, apply, refused }) {
  const shown = h("div", { class: "planned", "aria-live": "polite" });
  const ask = h("button", { type: "button", onclick: () => attempt(ask, () => load(false)) }, "Plan it");
  const probe = h("button", { type: "button", class: "quiet", title: "Two real steps on the longest rows; takes a place on a device.", onclick: () => attempt(probe, () => load(true)) }, "Measure it");
  let body = null; // what the shown plan is of

  const element = h(
    "section", { class: "training-plan", "aria-labelledby": "memory-title" },
    h("h3", { id: "memory-title" }, "Will it fit?"), shown, h("div", { class: "ask" }, ask, probe),
  );
  return { element, changed };

  async function load(isProbe) {
    if (!check()) return;
    const asked = values();
    replace(shown, h("p", { class: "note" }, isProbe ? "Two steps run and are measured …" : "Rows and parameters are counted …"));
    try {
      const plan = await api.post("/train/plan", { ...asked, ...(isProbe && { probe: true }) });
      body = JSON.stringify(asked);
      replace(shown, ...(plan.memory ? drawn(plan) : [h("p", { class: "note" }, plan.message)]));
      changed();
    } catch (problem) {
      replace(shown, h("p", { class: "callout", data: { tone: "bad" } }, problem.message));
      refused(problem);
    }
  }

  // A plan of other settings than those in the form says so.
  function changed() {
    if (body !== null) shown.classList.toggle("stale", JSON.stringify(values()) !== body);
  }

  function drawn({ memory, devices, changes, duration: lasts, warnings, tokens, total_parameters, trainable_parameters }) {
    const trained = Object.values(trainable_parameters).reduce((sum, count) => sum + count, 0);
    return [
      h("p", { class: "stale-note callout" }, "The settings have changed since: plan it again."),
      h("p", {}, h("b", {}, gib(memory.expected_bytes)), ` on ${memory.device_type === "cuda" ? "a GPU" : "the CPU"}, `, h("span", { class: "note" }, `${gib(memory.low_bytes)} to ${gib(memory.high_bytes)}, ${BASES[memory.basis]}${off(memory.correction)}`)),
      memoryBar(memory, devices),
      facts([
        ["Trained", `${number(trained)} of ${number(total_parameters)} parameters`],
        ["Tokens a row", `${number(tokens.p50)}, longest ${number(tokens.max)}${tokens.image_max ? `, of it picture ${number(tokens.image_max)}` : ""}${tokens.is_estimated ? " (estimated)" : ""}`],
        ["Time", lasts.minutes === null ? lasts.message : h("span", { title: lasts.message }, `about ${duration(60 * lasts.minutes)}`)],
      ]),
      warnings.map((text) => h("p", { class: "callout" }, text)),
      changes.length > 0 && [h("h4", {}, "What would take less"), h("ul", { class: "changes" }, changes.map(change))],
    ];
  }

  function change({ title, cost, config, expected_bytes, high_bytes, fits }) {
    const text = Object.entries(config).map(([name, value]) => `${name} ${asWritten(value)}`).join(", ");
    const button = h("button", { type: "button", "aria-label": `Apply ${title}`, title: text, onclick: () => apply(config) }, "Apply");
    const says = fits.length ? `fits on ${fits.join(", ")}` : "still too large";
    return h("li", { data: { fits: String(fits.length > 0) } }, h("div", {}, h("b", {}, title), ` ${gib(expected_bytes)} `, h("span", { class: "note" }, `up to ${gib(high_bytes)}: ${says}. Price: ${cost}.`)), button);
  }
}

function off({ runs, error }) {
  if (!runs || error === null) return "";
  return ` (${plural(runs, "run")}, off by ${Math.round(100 * error)} %)`;
}

// The terms side by side, and under it each device with where its memory ends.
function memoryBar(memory, devices) {
  const most = Math.max(memory.high_bytes, ...devices.map(({ total_bytes }) => total_bytes ?? 0));
  const share = (bytes) => `${(100 * bytes) / most}%`;
  const said = memory.terms.map(({ name, size_bytes }) => `${name} ${gib(size_bytes)}`).join(", ");
  return h(
    "figure", { class: "memory" },
    h("div", { class: "terms", role: "img", "aria-label": `Memory: ${said}` }, memory.terms.map(({ name, size_bytes }, place) => h(
      "i", { title: `${name}: ${gib(size_bytes)}`, style: { "--share": share(size_bytes), "--series": `var(--series-${place % 8})` } },
    ))),
    h("ul", { class: "devices" }, devices.map((device) => h(
      "li", { data: { fits: String(device.fits) }, title: device.message },
      h("i", { "aria-hidden": "true", style: { "--share": share(device.total_bytes ?? 0) } }),
      h("span", {}, `${device.device_id} of ${device.runner_id}`),
      h("span", { class: "note" }, `${device.total_bytes === null ? "memory not known" : gib(device.total_bytes)}: ${verdict(device)}`),
    ))),
    h("details", {}, h("summary", {}, `Most of it: ${memory.dominant}`), h("ul", { class: "legend" }, memory.terms.map(({ name, size_bytes }, place) => h(
      "li", { style: { "--series": `var(--series-${place % 8})` } }, h("span", {}, name), h("span", {}, gib(size_bytes)),
    )))),
  );
}

function verdict({ fits }) {
  return fits === null ? "not known" : fits ? "✓ fits" : "✕ does not fit";
}

function gib(bytes) {
  return bytes < GIB / 10 ? `${(bytes / 2 ** 20).toFixed(0)} MiB` : `${(bytes / GIB).toFixed(1)} GiB`;
}
