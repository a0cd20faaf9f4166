// The shell: shows the view that the address names, the state of the connection, the theme, keys and the token dialog.
//
// A view is a module of views/ with `title` and `render(root, params) → stop()`. `params` has the parts of the address
// behind the view's name (`parts`), its query (`query`, a URLSearchParams) and `set(changes)`, which changes the query
// in place, so that every state of a view has an address.

import { session } from "./api.js";
import { ago } from "./format.js";
import { keys, showHelp } from "./keyboard.js";
import { connection, reconnectNow } from "./live.js";
import { askForToken, say } from "./notices.js";
import { h, replace, setText } from "./dom.js";

const VIEWS = {
  jobs: () => import("./views/jobs.js"),
  job: () => import("./views/job.js"),
  train: () => import("./views/train.js"),
  data: () => import("./views/data.js"),
  experiments: () => import("./views/experiments.js"),
  compare: () => import("./views/compare.js"),
  exports: () => import("./views/exports.js"),
  webhooks: () => import("./views/webhooks.js"),
};
const UNDER = { job: "jobs", compare: "experiments" }; // the page in the navigation that a view belongs to
const FRESH_S = 5; // what is older than this has its age beside it, in steps as long
const QUIET_S = 25; // without a word for so long, something is slow

const root = document.getElementById("view");
let stop = () => {};
let shown = 0; // counts navigations, so that a slow module does not draw over a later one

async function show() {
  const turn = ++shown;
  leave();
  try {
    const { name, params } = parse(location.hash, () => turn === shown);
    mark(UNDER[name] ?? name);
    const view = Object.hasOwn(VIEWS, name) ? await VIEWS[name]() : NOWHERE;
    if (turn !== shown) return;
    replace(root);
    arrive(name, view.title, turn);
    stop = view.render(root, params) ?? stop;
  } catch (error) {
    if (turn === shown) replace(root, failure(error));
  }
}

// What belongs to the view goes with it, a question that nobody answered too.
function leave() {
  stop();
  stop = () => {};
  for (const dialog of document.querySelectorAll("dialog[open]:not([data-stays])")) dialog.close();
  replace(root, h("p", { class: "loading" }, "Loading …"));
}

// The focus goes to the new view, so that its name is read out and the next Tab is in it.
function arrive(name, title, turn) {
  document.title = `${title} · Training API`;
  root.dataset.view = name;
  root.setAttribute("aria-label", title);
  if (turn > 1) root.focus({ preventScroll: true });
  scrollTo(0, 0);
}

function parse(hash, isShown) {
  const [path, search = ""] = hash.replace(/^#\/?/, "").split("?");
  const [name, ...parts] = decoded(path.split("/"));
  const query = new URLSearchParams(search);
  const set = (changes) => {
    for (const [key, value] of Object.entries(changes)) value ? query.set(key, value) : query.delete(key);
    const text = query.toString().replaceAll("%2C", ","); // lists of ids stay readable
    if (!isShown()) return; // what a view still awaited when it was left
    history.replaceState(null, "", `#/${path}${text ? `?${text}` : ""}`);
  };
  return { name: name === "" ? "jobs" : name, params: { parts, query, set } };
}

// A text that is no address at all names no view either.
function decoded(parts) {
  try {
    return parts.map(decodeURIComponent);
  } catch {
    return [null];
  }
}

function mark(name) {
  for (const link of document.querySelectorAll("#nav a")) {
    if (link.hash === `#/${name}`) {
      link.setAttribute("aria-current", "page");
      link.scrollIntoView({ block: "nearest", inline: "nearest" }); // on a narrow screen the row of links scrolls
    } else link.removeAttribute("aria-current");
  }
}

const NOWHERE = {
  title: "No such page",
  render: (root) => void root.append(h(
    "section", { class: "empty" }, h("h1", {}, "There is no such page"), h("p", {}, "The address may be old, or not complete."),
    h("p", { class: "actions" }, h("a", { class: "button primary", href: "#/jobs" }, "All jobs")),
  )),
};

function failure(error) {
  return h(
    "section", { class: "empty" },
    h("h1", {}, "This page could not be shown"),
    h("p", {}, error.message),
    h("button", { type: "button", onclick: show }, "Try again"),
  );
}

// -- connection

const SAYINGS = { idle: "", gone: "removed", locked: "token needed", connecting: "connecting", "catching up": "catching up", live: "live" };

function showConnection() {
  const { state, heardAt } = connection;
  const chip = document.getElementById("connection");
  const age = heardAt ? Math.floor((Date.now() - heardAt) / 1000 / FRESH_S) * FRESH_S : 0;
  chip.dataset.state = state.name === "live" && age >= QUIET_S ? "quiet" : state.name;
  const left = Math.max(0, Math.ceil(((state.at ?? 0) - Date.now()) / 1000));
  const said = { ...SAYINGS, reconnecting: `reconnecting in ${left} s`, failing: `trying again in ${left} s` }[state.name];
  setText(document.getElementById("connection-text"), state.name === "live" && age >= FRESH_S ? `${said} · ${ago(Date.now() - 1000 * age)}` : said);
  chip.title = heardAt ? `Last heard ${ago(heardAt)}` : "";
  showBanner(state, left, heardAt);
}

let isLost = false;
let trouble = ""; // why the view could not be loaded

function showBanner(state, left, heardAt) {
  const banner = document.getElementById("banner");
  if (state.name === "live" && isLost) say("Connected again. Nothing was missed.");
  if (state.name === "reconnecting" && !isLost) say("The connection to the service is lost.", "unseen");
  if (state.name === "failing" && trouble !== state.trouble) say(state.trouble, "unseen");
  const isWell = ["live", "idle", "gone"].includes(state.name);
  isLost = state.name === "reconnecting" || (isLost && !isWell);
  trouble = state.name === "failing" ? state.trouble : isWell ? "" : trouble;
  banner.hidden = !isLost && !trouble;
  if (banner.hidden) return;
  if (!banner.firstChild) replace(banner, h("span"), h("button", { type: "button", onclick: reconnectNow }, "Try now"));
  const what = { reconnecting: `Trying again in ${left} s.`, failing: `Trying again in ${left} s.`, "catching up": isLost ? "Catching up …" : "Trying again …" }[state.name] ?? "Trying again …";
  const why = state.name === "catching up" && isLost ? "The connection is back." : trouble && state.name !== "reconnecting" ? trouble : "The connection to the service is lost.";
  setText(banner.firstChild, [why, what, heardAt && isLost && `What you see is from ${ago(heardAt)}.`].filter(Boolean).join(" "));
}

// -- theme

const THEMES = { system: "◐", light: "☀", dark: "☾" };

function applyTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
  const button = document.getElementById("theme");
  setText(button, THEMES[theme]);
  button.title = `Theme: ${theme}`;
  button.setAttribute("aria-label", button.title);
  dispatchEvent(new Event("themechange"));
}

function nextTheme() {
  const names = Object.keys(THEMES);
  const current = document.documentElement.dataset.theme;
  applyTheme(names[(names.indexOf(current) + 1) % names.length]);
}

// -- start

function go(name) {
  location.hash = `#/${name}`;
}

applyTheme(localStorage.getItem("theme") in THEMES ? localStorage.getItem("theme") : "system");
document.getElementById("theme").addEventListener("click", nextTheme);
document.getElementById("help").addEventListener("click", showHelp);
document.getElementById("skip").addEventListener("click", () => root.focus());
keys({
  "?": ["Keys of this page", showHelp],
  t: ["Theme: system, light, dark", nextTheme],
  1: ["Jobs", () => go("jobs")],
  2: ["New training", () => go("train")],
  3: ["Data", () => go("data")],
  4: ["Experiments", () => go("experiments")],
  5: ["Exports", () => go("exports")],
  6: ["Webhooks", () => go("webhooks")],
});
connection.addEventListener("change", showConnection);
setInterval(showConnection, 1000);
session.addEventListener("unauthenticated", async () => {
  if (await askForToken()) {
    reconnectNow();
    show();
  }
});
addEventListener("hashchange", show);
show();
