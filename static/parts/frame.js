// One frame of a dataset: its picture, and over it on a canvas the masks, boxes and labels of its objects.

import { h } from "../dom.js";
import { fillMask } from "../rle.js";

const SERIES = 8; // colours there are
const OPACITY = 0.45;
const SHARPEST = 2; // canvas pixels to one of the page

// → colour of a label; the same on every frame. `labels` are in the order in which colours are given out.
export function palette(labels) {
  const places = new Map(labels.map((label, place) => [label, place]));
  const probe = h("span", { hidden: true });
  const known = new Map();
  return {
    // The variable for a swatch of the page.
    name(label) {
      if (!places.has(label)) places.set(label, places.size);
      return `var(--series-${places.get(label) % SERIES})`;
    },
    // What a canvas understands, in the theme of the moment.
    onCanvas(label) {
      const name = this.name(label);
      if (!known.has(name)) {
        document.body.append(probe);
        probe.style.setProperty("color", name);
        known.set(name, getComputedStyle(probe).color);
        probe.remove();
      }
      return known.get(name);
    },
    forget: () => known.clear(),
  };
}

// → { element, draw(shown), clear() }. `shown` says what is drawn: { masks, boxes, labels }.
export function frame(row, colours) {
  const picture = row.image && h("img", { src: row.image.url, alt: "", loading: "lazy", decoding: "async" });
  const canvas = h("canvas", { "aria-hidden": "true" });
  const element = h("span", { class: "frame" }, picture, canvas);
  if (row.image?.width && row.image?.height) shape(row.image.width, row.image.height);
  picture?.addEventListener("load", () => shape(picture.naturalWidth, picture.naturalHeight));
  picture?.addEventListener("error", () => element.classList.add("lost"));
  if (!picture) element.classList.add("lost");
  return { element, draw, clear };

  function shape(width, height) {
    element.style.setProperty("--ratio", width / height);
  }

  // A canvas out of sight holds no pixels.
  function clear() {
    canvas.width = canvas.height = 0;
  }

  function draw(shown) {
    const sharp = Math.min(SHARPEST, devicePixelRatio);
    const across = (canvas.width = Math.round(element.clientWidth * sharp));
    const down = (canvas.height = Math.round(element.clientHeight * sharp));
    const context = canvas.getContext("2d");
    if (shown.masks) row.masks.forEach((mask, place) => {
      context.globalAlpha = OPACITY;
      context.fillStyle = colours.onCanvas(row.labels[place] ?? "");
      fillMask(context, mask, { across, down });
    });
    context.globalAlpha = 1;
    const size = sizeOf(row, picture);
    if (size) row.boxes.forEach((box, place) => outline(context, row.labels[place] ?? "", scaled(box, across / size.width, down / size.height), sharp, shown));
  }

  function outline(context, label, [x, y, wide, high], sharp, shown) {
    context.strokeStyle = context.fillStyle = colours.onCanvas(label);
    context.lineWidth = 1.5 * sharp;
    if (shown.boxes) context.strokeRect(x, y, wide, high);
    if (!shown.labels || !label) return;
    context.font = `600 ${11 * sharp}px system-ui, sans-serif`;
    const space = context.measureText(label).width + 6 * sharp;
    const top = Math.max(0, y - 15 * sharp);
    const left = Math.max(0, Math.min(x, context.canvas.width - space));
    context.fillRect(left, top, space, 15 * sharp);
    context.fillStyle = readable(context.strokeStyle);
    context.fillText(label, left + 3 * sharp, top + 11.5 * sharp);
  }
}

// What an object is called, once each: "2 × cat, dog".
export function contents({ labels }) {
  const counts = new Map();
  for (const label of labels) counts.set(label, (counts.get(label) ?? 0) + 1);
  return [...counts].map(([label, count]) => (count > 1 ? `${count} × ${label}` : label)).join(", ");
}

const scaled = ([x, y, wide, high], toX, toY) => [x * toX, y * toY, wide * toX, high * toY];

function sizeOf({ image }, picture) {
  if (image?.width && image?.height) return image;
  return picture?.naturalWidth ? { width: picture.naturalWidth, height: picture.naturalHeight } : null;
}

// Black or white, whichever is told from a colour given as #rrggbb.
function readable(colour) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue > 150 ? "#000" : "#fff";
}
