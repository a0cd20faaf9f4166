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
};
const UNDER = { job: "jobs", compare: "experiments" }; // the page in the navigation that a view belongs to
const QUIET_S = 25; // without a word for so long, the page says how old it is

const root = document.getElementById("view");
let stop = () => {};
let shown = 0; // counts navigations, so that a slow module does not draw over a later one

async function show() {
  const turn = ++shown;
  const { name, params } = parse(location.hash, () => turn === shown);
  stop();
  stop = () => {};
  replace(root, h("p", { class: "loading" }, "Loading …"));
  mark(UNDER[name] ?? name);
  try {
    const view = await (VIEWS[name] ?? VIEWS.jobs)();
    if (turn !== shown) return;
    document.title = `${view.title} · Training API`;
    replace(root);
    root.dataset.view = name;
    stop = view.render(root, params) ?? stop;
  } catch (error) {
    if (turn === shown) replace(root, failure(error));
  }
  scrollTo(0, 0);
}

function parse(hash, isShown) {
  const [path, search = ""] = hash.replace(/^#\/?/, "").split("?");
  const [name, ...parts] = path.split("/").map(decodeURIComponent);
  const query = new URLSearchParams(search);
  const set = (changes) => {
    for (const [key, value] of Object.entries(changes)) value ? query.set(key, value) : query.delete(key);
    const text = query.toString().replaceAll("%2C", ","); // lists of ids stay readable
    if (!isShown()) return; // what a view still awaited when it was left
    history.replaceState(null, "", `#/${path}${text ? `?${text}` : ""}`);
  };
  return { name: name || "jobs", params: { parts, query, set } };
}

function mark(name) {
  for (const link of document.querySelectorAll("#nav a")) {
    if (link.hash === `#/${name}`) {
      link.setAttribute("aria-current", "page");
      link.scrollIntoView({ block: "nearest", inline: "nearest" }); // on a narrow screen the row of links scrolls
    } else link.removeAttribute("aria-current");
  }
}

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
  const isQuiet = state.name === "live" && heardAt && Date.now() - heardAt > QUIET_S * 1000;
  chip.dataset.state = isQuiet ? "quiet" : state.name;
  const left = state.name === "reconnecting" ? Math.max(0, Math.ceil((state.at - Date.now()) / 1000)) : 0;
  const text = state.name === "reconnecting" ? `reconnecting in ${left} s` : isQuiet ? `last heard ${ago(heardAt)}` : SAYINGS[state.name];
  setText(document.getElementById("connection-text"), text);
  chip.title = heardAt ? `Last heard ${ago(heardAt)}` : "";
  showBanner(state, left, heardAt);
}

let lostAt = null;

function showBanner(state, left, heardAt) {
  const banner = document.getElementById("banner");
  if (state.name === "live" && lostAt) {
    say("Connected again. Nothing was missed.");
    lostAt = null;
  }
  if (state.name === "reconnecting") lostAt ??= Date.now();
  banner.hidden = !lostAt || state.name === "idle";
  if (banner.hidden) return;
  const what = state.name === "reconnecting" ? `Trying again in ${left} s.` : "Catching up …";
  const age = heardAt ? ` What you see is from ${ago(heardAt)}.` : "";
  if (!banner.firstChild) {
    replace(banner, h("span"), h("button", { type: "button", onclick: reconnectNow }, "Reconnect now"));
  }
  setText(banner.firstChild, `The connection to the service is lost. ${what}${age}`);
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
