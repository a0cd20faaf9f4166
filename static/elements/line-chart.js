// <line-chart label="Loss">: lines over one x axis. `show({ x, unit, isShare, log, smooth, lines })` draws, and draws
// anew when called again with longer lists; shares, of 0 to 1, are shown as percent. Drawn with uPlot where it is there (`make vendor`), else as a plain SVG.
//
// A line: { key, label, tone: 0..7, dashed, smooth, x: [rising numbers], y: [number or null], notFinite: [x, …] };
// `smooth: false` leaves it as it is. The chart redraws at most once a frame; after it, `dataset.points` says how many points stand there and "painted" is fired.

import { h, replace, setText, svg } from "../dom.js";
import { evenly, extentOf, smoothed, sumOf, tableOf } from "./downsample.js";
import { number, percent, plural } from "../format.js";
import { scroller } from "../parts/pieces.js";

const HEIGHT = 240;
const AXIS = { left: 58, bottom: 32, top: 14, right: 14 };
const ROWS_OF_TABLE = 200;
const SHARES = [-0.02, 1.02]; // their axis: what lies on its ends is seen whole
const FAINT = 0.3; // what the raw line keeps of its colour beside the smoothed one
const DOTS = 30; // so few points of a line are marked one by one in the plain plot
const NEAR = 40; // a value is shown on hover when it is at most so many pixels away
const LIBRARY = "/ui/vendor/uplot/uPlot";

let library = null; // a promise of uPlot, or of null where it is missing
const charts = new Set();

class LineChart extends HTMLElement {
  #spec = { x: "step", unit: "", isShare: false, log: false, smooth: 0, lines: [] };
  #off = new Set(); // keys of lines that were switched off
  #range = null; // [from, to] while zoomed in
  #frame = 0;
  #plot = null; // uPlot's
  #shape = ""; // what the plot was made for: another shape needs another plot
  #uPlot = undefined; // undefined until it is known whether the library is there
  #parts = null;
  #legendOf = "";
  #drawn = null; // { lines, xs, ys, marks } as they stand in the plot
  #observer = new ResizeObserver(() => this.#schedule());

  connectedCallback() {
    this.#parts ??= this.#build();
    charts.add(this);
    this.#observer.observe(this.#parts.plot);
    this.#schedule();
    load().then((uPlot) => {
      this.#uPlot = uPlot;
      this.#schedule();
    });
  }

  disconnectedCallback() {
    charts.delete(this);
    this.#observer.disconnect();
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#forget();
  }

  show(spec) {
    this.#spec = { x: "step", unit: "", isShare: false, log: false, smooth: 0, ...spec };
    this.#schedule();
  }

  // Colours of a canvas do not follow the theme on their own.
  recolour() {
    this.#shape = "";
    this.#schedule();
  }

  #build() {
    const parts = {
      unit: h("span", { class: "note" }),
      reduced: h("span", { class: "tag", hidden: true, title: "Of every bucket the lowest and the highest point are drawn." }),
      at: h("span", { class: "note at" }),
      plot: h("div", { class: "plot", "aria-hidden": "true" }),
      legend: h("div", { class: "legend", role: "group", "aria-label": "Lines" }),
      table: scroller(`${this.getAttribute("label")} as a table`),
    };
    parts.details = h("details", { ontoggle: () => this.#fillTable() }, h("summary", {}, "Values as a table"), parts.table);
    const heading = h("h3", {}, this.getAttribute("label"), " ", parts.unit);
    this.setAttribute("role", "figure");
    this.setAttribute("aria-label", this.getAttribute("label"));
    this.append(h("div", { class: "chart-head" }, heading, parts.reduced, parts.at), parts.plot, parts.legend, parts.details);
    return parts;
  }

  // A value as the reader sees it.
  #text(value) {
    return this.#spec.isShare ? percent(value) : number(value);
  }

  #schedule() {
    if (this.isConnected) this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#frame = 0;
    const { plot } = this.#parts;
    if (plot.clientWidth === 0 || this.#uPlot === undefined) return;
    const { lines, unit } = this.#spec;
    const visible = lines.filter(({ key }) => !this.#off.has(key));
    setText(this.#parts.unit, unit);
    this.setAttribute("aria-label", `${this.getAttribute("label")}: ${summaryOf(lines, this.#spec.x, (value) => this.#text(value))}`);
    this.#drawn = this.#tabulate(visible, plot.clientWidth - AXIS.left - AXIS.right);
    this.#drawLegend();
    const ofLines = (counts) => sumOf(counts.filter((_, n) => this.#drawn.lines[n].alpha === 1)); // not their faint twins
    const [shown, total] = [ofLines(this.#drawn.shown), ofLines(this.#drawn.total)];
    this.#parts.reduced.hidden = shown >= total;
    setText(this.#parts.reduced, `${number(shown)} of ${number(total)} points`);
    if (!this.#drawn.extent) this.#drawNothing();
    else if (this.#uPlot) this.#drawPlot(plot.clientWidth);
    else {
      replace(plot, plain(this.#drawn, this.#spec, plot.clientWidth));
      this.#painted();
    }
    if (this.#parts.details.open) this.#fillTable();
  }

  // What stands in the plot: each line, behind it its raw values where it is smoothed.
  #tabulate(visible, width) {
    const { log, smooth } = this.#spec;
    const forLog = (y) => log ? y.map((value) => value > 0 ? value : null) : y;
    const isSmooth = (line) => smooth > 0 && line.smooth !== false;
    const raw = visible.map((line) => ({ ...line, y: forLog(line.y), alpha: isSmooth(line) ? FAINT : 1 }));
    const lines = [...raw, ...visible.filter(isSmooth).map((line) => ({ ...line, y: forLog(smoothed(line.y, smooth)), alpha: 1 }))];
    const extent = extentOf([...visible.filter(({ y }) => y.some(isValue)), ...visible.map(({ notFinite }) => ({ x: notFinite ?? [] }))]);
    const [from, to] = this.#range ?? extent ?? [0, 1];
    const marks = visible.flatMap(({ tone, notFinite = [] }) => notFinite.filter((x) => x >= from && x <= to).map((x) => ({ x, tone })));
    return { lines, extent, from, to, marks, ...tableOf(lines, { from, to, width }) };
  }

  #drawNothing() {
    this.#forget();
    replace(this.#parts.plot, h("p", { class: "note nothing" }, "No values"));
    this.#painted();
  }

  #painted() {
    const points = sumOf(this.#drawn.shown);
    this.dataset.points = points;
    this.dispatchEvent(new CustomEvent("painted", { detail: { x: this.#drawn.extent?.[1] ?? null, points } }));
  }

  // -- uPlot

  #drawPlot(width) {
    const { lines, xs, ys } = this.#drawn;
    const shape = JSON.stringify([this.#spec.log, this.#spec.isShare, this.#spec.x, lines.map(({ key, tone, dashed, alpha }) => [key, tone, dashed, alpha])]);
    if (this.#plot && this.#shape === shape) {
      if (this.#plot.width !== width) this.#plot.setSize({ width, height: HEIGHT });
      this.#plot.setData([xs, ...ys]);
      return;
    }
    this.#forget();
    this.#shape = shape;
    replace(this.#parts.plot);
    this.#plot = new this.#uPlot(this.#options(width), [xs, ...ys], this.#parts.plot);
  }

  #options(width) {
    const colour = coloursOf(this);
    const { log, isShare, x } = this.#spec;
    const axis = { stroke: colour("soft"), font: "12px system-ui, sans-serif", grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
    return {
      width, height: HEIGHT, padding: [AXIS.top, AXIS.right, 0, 0], legend: { show: false },
      scales: { x: { time: false, range: () => this.#shownRange() }, y: { distr: log ? 3 : 1, ...(isShare && !log && { range: SHARES }) } },
      axes: [
        { ...axis, size: AXIS.bottom, incrs: x === "step" ? WHOLE : undefined, values: (_, splits) => splits.map((value) => number(value)) },
        { ...axis, size: AXIS.left, values: (_, splits) => splits.map((value) => value === null ? "" : tick(value, isShare)) },
      ],
      series: [{}, ...this.#drawn.lines.map((line) => seriesOf(line, colour(`series-${line.tone % 8}`)))],
      cursor: {
        y: false, drag: { x: true, y: false, setScale: false }, points: { size: 7 },
        dataIdx: (plot, series, index) => nearest(plot, series, index),
        bind: { dblclick: () => () => this.#zoom(null) },
      },
      hooks: {
        draw: [(plot) => { this.#drawMarks(plot, colour); this.#painted(); }],
        setCursor: [(plot) => this.#hover(plot)],
        setSelect: [(plot) => this.#select(plot)],
      },
    };
  }

  #shownRange() {
    const { from, to } = this.#drawn;
    return from < to ? [from, to] : [from - 1, to + 1];
  }

  #drawMarks(plot, colour) {
    const size = 5 * devicePixelRatio;
    const { ctx, bbox } = plot;
    for (const { x, tone } of this.#drawn.marks) {
      const left = plot.valToPos(x, "x", true);
      ctx.fillStyle = colour(`series-${tone % 8}`);
      ctx.beginPath();
      ctx.moveTo(left - size, bbox.top - size);
      ctx.lineTo(left + size, bbox.top - size);
      ctx.lineTo(left, bbox.top + size);
      ctx.fill();
    }
  }

  #select(plot) {
    const { left, width } = plot.select;
    if (width < 4) return;
    const from = plot.posToVal(left, "x");
    const to = plot.posToVal(left + width, "x");
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.#zoom([from, to]);
  }

  #zoom(range) {
    this.#range = range;
    this.dataset.zoomed = range ? "yes" : "";
    this.#schedule();
  }

  #forget() {
    this.#plot?.destroy();
    this.#plot = null;
  }

  // -- legend

  // Buttons stay the same elements while the lines do, so that the focus stays.
  #drawLegend() {
    const { lines } = this.#spec;
    const legendOf = JSON.stringify(lines.map(({ key, label, tone, dashed }) => [key, label, tone, dashed]));
    if (legendOf !== this.#legendOf) {
      this.#legendOf = legendOf;
      replace(this.#parts.legend, lines.map((line) => this.#entry(line)));
    }
    this.#say(null);
  }

  #entry({ key, label, tone, dashed }) {
    const swatch = h("span", { class: "swatch", "aria-hidden": "true", data: { dashed: Boolean(dashed) }, style: { color: `var(--series-${tone % 8})` } });
    const toggle = () => {
      this.#off.has(key) ? this.#off.delete(key) : this.#off.add(key);
      button.setAttribute("aria-pressed", !this.#off.has(key));
      this.#schedule();
    };
    const button = h(
      "button", { type: "button", class: "quiet", "aria-pressed": String(!this.#off.has(key)), onclick: toggle },
      swatch, h("span", {}, label), h("b"), h("span", { class: "lost", title: "Values that are no finite number: the triangles at the top edge" }),
    );
    return button;
  }

  #hover(plot) {
    const { idx, idxs } = plot.cursor;
    this.#say(idx === null || idx === undefined ? null : idxs);
  }

  // The values under the pointer, or the newest ones.
  #say(idxs) {
    const { lines, x } = this.#spec;
    const { xs, ys, lines: drawn } = this.#drawn;
    const values = new Map(); // key → the value itself, which comes before its smoothed one
    drawn.forEach(({ key }, n) => {
      if (values.has(key)) return;
      const at = idxs ? idxs[n + 1] : lastOf(ys[n]);
      values.set(key, at === null || at < 0 ? null : ys[n][at]);
    });
    const place = idxs && xs[idxs[0]];
    setText(this.#parts.at, idxs && place !== undefined ? `${x} ${number(x === "step" ? Math.round(place) : place)}` : this.#range ? "double-click for everything" : "");
    lines.forEach(({ key, notFinite }, n) => {
      const [, , value, lost] = this.#parts.legend.children[n].children;
      setText(value, values.has(key) ? this.#text(values.get(key)) : "");
      setText(lost, notFinite?.length ? `▼ ${number(notFinite.length)} not finite` : "");
    });
  }

  // -- the values as a table

  #fillTable() {
    if (!this.#parts.details.open) return;
    const { lines, x } = this.#spec;
    const places = [...new Set(lines.flatMap((line) => line.x.filter((_, n) => line.y[n] !== null)))].sort((a, b) => a - b);
    const chosen = evenly(places.length, ROWS_OF_TABLE).map((n) => places[n]);
    const columns = lines.map((line) => new Map(line.x.map((place, n) => [place, line.y[n]])));
    const note = chosen.length < places.length ? `${chosen.length} of ${number(places.length)} points, evenly chosen` : plural(places.length, "point");
    replace(this.#parts.table, h(
      "table", {}, h("caption", { class: "note" }, note),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, x), lines.map(({ label }) => h("th", { scope: "col", class: "number" }, label)))),
      h("tbody", {}, chosen.map((place) => h("tr", {}, h("th", { scope: "row" }, number(place)), columns.map((column) => h("td", { class: "number" }, this.#text(column.get(place))))))),
    ));
  }
}

const WHOLE = [1, 2, 5].flatMap((digit) => Array.from({ length: 10 }, (_, power) => digit * 10 ** power)).sort((a, b) => a - b);

// Loads uPlot once; without it the charts are plain.
function load() {
  library ??= new Promise((resolve) => {
    const script = h("script", { src: `${LIBRARY}.iife.min.js`, onload: () => resolve(window.uPlot ?? null), onerror: () => resolve(null) });
    document.head.append(h("link", { rel: "stylesheet", href: `${LIBRARY}.min.css` }), script);
  });
  return library;
}

function seriesOf({ dashed, alpha }, stroke) {
  return {
    stroke, alpha, width: alpha < 1 ? 1 : 2, dash: dashed ? [6, 4] : undefined, spanGaps: true,
    points: { show: (plot, n, from, to) => alpha === 1 && isSparse(plot, n, from, to), size: 6, width: 0, fill: stroke },
  };
}

// Points are drawn where they stand far apart, so that a single value is seen too.
function isSparse(plot, n, from, to) {
  let count = 0;
  const most = plot.bbox.width / devicePixelRatio / 14;
  for (let i = from; i <= to && count <= most; i++) if (plot.data[n][i] !== null) count++;
  return count <= most;
}

// The nearest place with a value of this line; null where there is none close by.
function nearest(plot, n, index) {
  if (n === 0) return index;
  const row = plot.data[n];
  const isNear = (i) => Math.abs(plot.valToPos(plot.data[0][i], "x") - plot.cursor.left) <= NEAR;
  for (let by = 0; by < row.length; by++) {
    for (const i of [index - by, index + by]) if (row[i] !== null && row[i] !== undefined) return isNear(i) ? i : null;
    if (by > 0 && !(isNear(Math.max(0, index - by)) || isNear(Math.min(row.length - 1, index + by)))) return null;
  }
  return null;
}

function lastOf(row) {
  let at = row.length - 1;
  while (at >= 0 && row[at] === null) at--;
  return at;
}

// "train loss falls from 5.2 to 0.38 over 80 steps"
function summaryOf(lines, x, textOf) {
  const told = lines.slice(0, 4).map((line) => {
    const [from, to] = [line.y.findIndex(isValue), line.y.findLastIndex(isValue)];
    if (from < 0) return `${line.label} has no values yet`;
    const [first, last] = [line.y[from], line.y[to]];
    if (from === to) return `${line.label} is ${textOf(first)} at ${x} ${number(line.x[from])}`;
    const verb = last < first ? "falls" : last > first ? "rises" : "stays";
    const values = verb === "stays" ? `at ${textOf(first)}` : `from ${textOf(first)} to ${textOf(last)}`;
    return `${line.label} ${verb} ${values} over ${plural(Number((line.x[to] - line.x[from]).toPrecision(3)), x)}`;
  });
  const more = lines.length > 4 ? [`and ${plural(lines.length - 4, "line")} more`] : [];
  return [...told, ...more].join("; ") || "no values yet";
}

function isValue(value) {
  return value !== null && value !== undefined;
}

function tick(value, isShare) {
  if (isShare) return `${number(100 * value)} %`;
  const size = Math.abs(value);
  if (size >= 1e4 && size < 1e15) return new Intl.NumberFormat("en", { notation: "compact" }).format(value);
  return size !== 0 && size < 1e-3 ? value.toExponential(0) : number(value);
}

// A canvas takes no variables: what a token is in the theme of now.
function coloursOf(element) {
  const known = new Map();
  const probe = h("i", { hidden: true });
  return (token) => {
    if (!known.has(token)) {
      element.append(probe);
      probe.style.setProperty("color", `var(--${token})`);
      known.set(token, getComputedStyle(probe).color);
      probe.remove();
    }
    return known.get(token);
  };
}

// -- without the library

function plain({ lines, extent, xs, ys, marks, from, to }, { log, isShare }, width) {
  const scaled = (value) => log ? Math.log10(value) : value;
  const values = ys.flat().filter((value) => value !== null).map(scaled);
  const [low, high] = isShare && !log ? SHARES : padded(least(values), -least(values.map((value) => -value)));
  const [first, last] = from < to ? [from, to] : [from - 1, to + 1];
  const right = width - AXIS.right;
  const bottom = HEIGHT - AXIS.bottom;
  const left = (x) => AXIS.left + ((x - first) / (last - first)) * (right - AXIS.left);
  const top = (y) => bottom - ((scaled(y) - low) / (high - low)) * (bottom - AXIS.top);
  const unscaled = (value) => log ? 10 ** value : value;
  const heights = roundBetween(low, high).map(unscaled);
  const places = roundBetween(first, last);
  const colour = (tone) => `var(--series-${tone % 8})`;
  return svg(
    "svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, class: "plain" },
    heights.map((y) => [
      svg("line", { x1: AXIS.left, x2: right, y1: top(y), y2: top(y) }),
      svg("text", { x: AXIS.left - 8, y: top(y) + 4, "text-anchor": "end" }, tick(Number(y.toPrecision(2)), isShare)),
    ]),
    extent && places.map((x) => svg("text", { x: left(x), y: HEIGHT - 10, "text-anchor": left(x) > right - 15 ? "end" : "middle" }, number(x))),
    lines.map(({ tone, dashed, alpha }, n) => {
      const points = xs.flatMap((x, i) => ys[n][i] === null ? [] : [[left(x).toFixed(1), top(ys[n][i]).toFixed(1)]]);
      const line = svg("polyline", { points: points.join(" "), "stroke-dasharray": dashed ? "6 4" : null, "stroke-opacity": alpha, style: { stroke: colour(tone) } });
      const dots = points.length <= DOTS && alpha === 1 ? points.map(([cx, cy]) => svg("circle", { cx, cy, r: 3, style: { fill: colour(tone) } })) : [];
      return [line, ...dots];
    }),
    marks.map(({ x, tone }) => svg("path", { d: `M${left(x) - 5} ${AXIS.top - 5}h10l-5 10z`, style: { fill: colour(tone) } })),
  );
}

// A few round numbers from low to high.
function roundBetween(low, high) {
  const power = 10 ** Math.floor(Math.log10((high - low) / 4));
  const step = [1, 2, 5, 10].find((digit) => digit * power * 5 >= high - low) * power;
  const first = Math.ceil(low / step);
  const count = Math.floor(high / step) - first + 1;
  return Array.from({ length: count }, (_, n) => Number(((first + n) * step).toPrecision(12)));
}

function least(values) {
  return values.reduce((low, value) => Math.min(low, value), Infinity);
}

function padded(low, high) {
  if (!Number.isFinite(low)) return [0, 1];
  const room = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
  return [low - room, high + room];
}

const recolourAll = () => charts.forEach((chart) => chart.recolour());
addEventListener("themechange", recolourAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolourAll);

customElements.define("line-chart", LineChart);
