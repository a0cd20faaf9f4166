// The frames of a dataset as a grid that loads as it is scrolled, and one of them large with its conversation.
//
// What is shown stands in the address: ?part=val&frame=12&hide=labels. A finding's row is opened by its id.

import * as api from "../api.js";
import { h, replace, setText } from "../dom.js";
import { number, plural } from "../format.js";
import { attempt, say } from "../notices.js";
import { contents, frame, palette } from "./frame.js";
import { facts } from "./pieces.js";

const PAGE = 50;
const NEAR = "400px"; // beyond the visible part that is drawn and loaded ahead
const OVERLAYS = { masks: "Masks", boxes: "Boxes", labels: "Labels" };

// → { element, open(rowId), stop }. `parts` is { word: data_path }, of one dataset or of the files of a split.
export function frames({ query, set }, parts, labels) {
  const colours = palette(labels);
  const shown = Object.fromEntries(Object.keys(OVERLAYS).map((name) => [name, !(query.get("hide") ?? "").split(",").includes(name)]));
  let part = query.get("part") in parts ? query.get("part") : Object.keys(parts)[0];
  let tiles = new Map(); // element → its frame
  let rows = [];
  let next = 0;
  let loading = null;
  let turn = 0; // of parts: an answer for the one before is not shown

  const choose = h("select", { onchange: () => show(choose.value) }, Object.keys(parts).map((name) => h("option", { value: name }, name)));
  const count = h("span", { class: "note" });
  const grid = h("ul", { class: "frames" });
  const end = h("p", { class: "note end" });
  const box = h("div", { class: "frames-box", tabindex: "0", role: "region", "aria-label": "Frames" }, grid, end);
  const element = h(
    "section", { class: "card", id: "frames" },
    h("div", { class: "head" }, h("h2", {}, "Frames"), count, h("div", { class: "toolbar" }, chooser(), Object.entries(OVERLAYS).map(toggle))), box,
  );
  const drawn = new IntersectionObserver(onVisible, { root: box, rootMargin: NEAR });
  const ending = new IntersectionObserver(([{ isIntersecting }]) => isIntersecting && more(), { root: box, rootMargin: NEAR });
  const onTheme = () => (colours.forget(), redraw());
  const resized = new ResizeObserver(redraw);
  addEventListener("themechange", onTheme);
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", onTheme);
  resized.observe(grid);
  ending.observe(end);
  const large = dialogOf({ colours, shown, rowAt, moved: (index) => set({ frame: index === null ? null : String(index) }) });
  if (query.get("frame")) openAt(Number(query.get("frame")));
  return { element, open, stop };

  function stop() {
    turn += 1;
    large.forget();
    [drawn, ending, resized].forEach((observer) => observer.disconnect());
    removeEventListener("themechange", onTheme);
    system.removeEventListener("change", onTheme);
  }

  // -- what is shown

  function chooser() {
    choose.value = part;
    return Object.keys(parts).length > 1 && h("label", {}, "Part", choose);
  }

  function toggle([name, text]) {
    const button = h("button", { type: "button", "aria-pressed": String(shown[name]), onclick }, text);
    return button;

    function onclick() {
      shown[name] = !shown[name];
      button.setAttribute("aria-pressed", String(shown[name]));
      set({ hide: Object.keys(shown).filter((each) => !shown[each]).join(",") });
      redraw();
    }
  }

  function show(name) {
    part = choose.value = name;
    turn += 1;
    large.forget();
    set({ part: name === Object.keys(parts)[0] ? null : name });
    tiles.forEach((_, tile) => drawn.unobserve(tile));
    [tiles, rows, next, loading] = [new Map(), [], 0, null];
    replace(grid);
    box.scrollTo(0, 0);
    more();
  }

  function redraw() {
    tiles.forEach(({ draw, isSeen }) => isSeen && draw(shown));
  }

  function onVisible(entries) {
    for (const { target, isIntersecting } of entries) {
      const tile = tiles.get(target);
      if (!tile) continue;
      tile.isSeen = isIntersecting;
      if (isIntersecting) tile.draw(shown);
      else tile.clear();
    }
  }

  // -- rows

  function more() {
    const asked = turn;
    if (next !== null) loading ??= loadPage(asked).finally(() => asked === turn && (loading = null));
    return loading;
  }

  async function loadPage(asked) {
    try {
      const page = await api.get("/data/rows", { data_path: parts[part], after: next, limit: PAGE });
      if (asked !== turn) return;
      next = page.next;
      rows.push(...page.rows);
      grid.append(...page.rows.map(tileOf));
      setText(count, plural(page.total, "frame"));
      setText(end, page.total === 0 ? "There are no rows." : next === null ? "" : `${number(rows.length)} of ${number(page.total)} loaded`);
      ending.unobserve(end); // what is still in sight is told again
      ending.observe(end);
    } catch (error) {
      if (asked !== turn) return;
      replace(end, `${error.message} `, h("button", { type: "button", onclick: (event) => attempt(event.target, async () => more()) }, "Try again"));
    }
  }

  function tileOf(row) {
    const name = nameOf(row);
    const inside = row.error ? "cannot be read" : contents(row) || "no object";
    const { element, draw, clear } = frame(row, colours);
    const button = h("button", { type: "button", class: "tile", "aria-label": `${name}: ${inside}`, onclick: () => openAt(row.index) }, element, h("span", { class: "name" }, name), h("span", { class: "note" }, inside));
    const tile = h("li", { class: row.error ? "unreadable" : null, data: { index: row.index } }, button);
    tiles.set(tile, { draw, clear, isSeen: false });
    drawn.observe(tile);
    element.querySelector("img")?.addEventListener("load", () => tiles.get(tile)?.isSeen && draw(shown));
    return tile;
  }

  async function rowAt(index) {
    if (rows[index]) return rows[index];
    const page = await api.get("/data/rows", { data_path: parts[part], after: index, limit: 1 });
    return page.rows[0];
  }

  function openAt(index) {
    return large.show(index).catch((error) => say(error.message, "bad"));
  }

  // A row that cannot be read has no id: it is named by its number.
  async function open(rowId) {
    const [, counted] = /^row (\d+)$/.exec(rowId) ?? [];
    if (counted) return openAt(Number(counted) - 1);
    const asked = turn;
    for (const [name, data_path] of Object.entries(parts)) {
      const [row] = (await api.get("/data/rows", { data_path, row_id: rowId, limit: 1 })).rows;
      if (asked !== turn) return;
      if (!row) continue;
      if (name !== part) show(name);
      return openAt(row.index);
    }
    throw new Error(`There is no row ${rowId} any more.`);
  }
}

// One frame large: arrow keys and buttons go to its neighbours. `moved` is told the index, null when it is closed.
function dialogOf({ colours, shown, rowAt, moved }) {
  let at = 0;
  let wanted = 0; // where the keys have gone, before the answer
  let turn = 0; // of frames: an answer for the one before is not shown
  let dialog = null;
  return { show, forget };

  async function show(index) {
    const asked = ++turn;
    wanted = index;
    let row = null;
    try {
      row = index >= 0 && (await rowAt(index));
    } catch (error) {
      if (asked === turn) throw error;
    } finally {
      if (asked === turn) wanted = row ? index : at; // there is none beyond the first or the last
    }
    if (asked !== turn || !row) return;
    at = index;
    moved(index);
    if (!dialog) open();
    draw(row);
  }

  function forget() {
    turn += 1;
  }

  function open() {
    dialog = h("dialog", { class: "large", "aria-label": "Frame", onclose, onkeydown });
    document.body.append(dialog);
    dialog.showModal();
  }

  function onclose() {
    forget();
    dialog.remove();
    dialog = null;
    moved(null);
  }

  function onkeydown({ key }) {
    if (key === "ArrowLeft") go(-1);
    if (key === "ArrowRight") go(+1);
  }

  function go(by) {
    show(wanted + by).catch((error) => say(error.message, "bad"));
  }

  function draw(row) {
    const picture = frame(row, colours);
    const drawSoon = () => requestAnimationFrame(() => picture.draw(shown));
    picture.element.querySelector("img")?.addEventListener("load", drawSoon);
    const focused = document.activeElement.dataset.action ?? "after";
    const button = (action, text, label, onclick) => h("button", { type: "button", "aria-label": label, data: { action }, onclick }, text);
    replace(
      dialog,
      h(
        "div", { class: "head" }, h("h2", {}, nameOf(row)),
        h("div", { class: "toolbar" }, button("before", "‹", "Previous frame", () => go(-1)), button("after", "›", "Next frame", () => go(+1)), button("close", "Close", null, () => dialog.close())),
      ),
      row.error && h("p", { class: "callout", data: { tone: "bad" } }, row.error),
      h("div", { class: "sides" }, picture.element, h("div", { class: "about-frame" }, conversation(row), objects(row, colours), about(row))),
    );
    dialog.querySelector(`[data-action="${focused}"]`).focus();
    drawSoon();
  }
}

const nameOf = ({ id, index }) => id ?? `Row ${index + 1}`;

function conversation({ conversations }) {
  return h("dl", { class: "turns" }, conversations.map(({ from, value }) => [h("dt", {}, from === "human" ? "Asked" : "Answer"), h("dd", {}, value.replace(/^<image>\n?/, ""))]));
}

function objects({ labels, boxes, object_ids }, colours) {
  if (!labels.length) return null;
  return h("ul", { class: "objects" }, labels.map((label, place) => h(
    "li", {}, h("i", { class: "swatch", "aria-hidden": "true", style: { color: colours.name(label) } }), h("b", {}, label),
    h("span", { class: "note" }, [object_ids[place] !== undefined && `object ${object_ids[place]}`, boxes[place] && `at ${boxes[place].map((side) => number(Math.round(side))).join(", ")}`].filter(Boolean).join(" · ")),
  )));
}

function about({ video_id, frame_index, timestamp_sec, image }) {
  return facts([["Video", video_id], ["Frame", number(frame_index)], ["Time", timestamp_sec > 0 && `${number(timestamp_sec)} s`], ["Picture", image?.width > 0 && `${image.width} × ${image.height}`]]);
}
