// Curves made small enough to draw: pure functions over parallel lists, x rising, null where a line has no value.
//
// All lines share one list of x, as a plot wants it. Few points are taken as they are. Many fall into buckets that are
// the same for all lines; of each bucket a line keeps its lowest and its highest point in their order, so that no
// spike gets lost. A bucket is a power of two wide and begins at a multiple of it: as data grows the picture stands still.

const FEW = 8_000; // points of all lines together that are drawn as they are
const LEAST_SLOTS = 400;
const MOST_CELLS = 24_000; // of all lines together when reduced: 50 lines redraw within two frames

// → { xs, ys: [list of a line, …], shown: [points of a line, …], total: [points of a line, …] }
export function tableOf(lines, { from, to, width }) {
  const parts = lines.map(({ x }) => partOf(x, from, to));
  if (sumOf(parts.map(({ begin, end }) => end - begin)) <= FEW) return exact(lines, parts);
  const slots = Math.max(LEAST_SLOTS, Math.min(2 * width, Math.floor(MOST_CELLS / lines.length)));
  return bucketed(lines, parts, { from, to, buckets: slots / 2 });
}

export function sumOf(counts) {
  return counts.reduce((sum, count) => sum + count, 0);
}

// The first and the last x of all lines; null where there is no point.
export function extentOf(lines) {
  const filled = lines.filter(({ x }) => x.length > 0);
  if (filled.length === 0) return null;
  return [Math.min(...filled.map(({ x }) => x[0])), Math.max(...filled.map(({ x }) => x.at(-1)))];
}

// An exponential moving average without the pull of its start: `weight` 0..1 is how much the past counts.
export function smoothed(values, weight) {
  let sum = 0;
  let trust = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return null;
    sum = weight * sum + (1 - weight) * value;
    trust = weight * trust + (1 - weight);
    return sum / trust;
  });
}

// Of a long list at most `most` evenly chosen indices, with the first and the last.
export function evenly(length, most) {
  if (length <= most) return Array.from({ length }, (_, index) => index);
  return Array.from({ length: most }, (_, index) => Math.round((index * (length - 1)) / (most - 1)));
}

// Which points lie within from..to.
function partOf(x, from, to) {
  const begin = lowerBound(x, from);
  let end = lowerBound(x, to);
  while (end < x.length && x[end] <= to) end++;
  return { begin, end };
}

// With one more point at each side, so that a line reaches the edge of the plot.
function exact(lines, parts) {
  const total = lines.map(({ y }, n) => y.slice(parts[n].begin, parts[n].end).filter(isValue).length);
  parts.forEach((part, n) => widen(part, lines[n].y));
  const places = new Map();
  lines.forEach(({ x, y }, n) => {
    for (let i = parts[n].begin; i < parts[n].end; i++) if (isValue(y[i])) places.set(x[i], 0);
  });
  const xs = [...places.keys()].sort((a, b) => a - b);
  xs.forEach((x, place) => places.set(x, place));
  const ys = lines.map(({ x, y }, n) => {
    const row = new Array(xs.length).fill(null);
    for (let i = parts[n].begin; i < parts[n].end; i++) if (isValue(y[i])) row[places.get(x[i])] = y[i];
    return row;
  });
  return { xs, ys, shown: total, total };
}

function widen(part, y) {
  do part.begin--; while (part.begin > 0 && !isValue(y[part.begin]));
  do part.end++; while (part.end < y.length && !isValue(y[part.end - 1]));
  part.begin = Math.max(0, part.begin);
  part.end = Math.min(y.length, part.end);
}

function bucketed(lines, parts, { from, to, buckets }) {
  const wide = 2 ** Math.ceil(Math.log2((to - from) / buckets || 1));
  const start = Math.floor(from / wide) * wide;
  const count = Math.floor((to - start) / wide) + 1;
  const within = (x) => Math.min(to, Math.max(from, x));
  const xs = Array.from({ length: 2 * count }, (_, slot) => within(start + wide * (slot / 2 + 0.25)));
  const shown = lines.map(() => 0);
  const total = lines.map(() => 0);
  const ys = lines.map(({ x, y }, n) => {
    const row = new Array(2 * count).fill(null);
    let bucket = 0;
    let ends = -Infinity; // where the bucket ends
    let low = -1;
    let high = -1;
    const keep = () => {
      if (low < 0) return;
      row[2 * bucket] = y[Math.min(low, high)];
      if (low !== high) row[2 * bucket + 1] = y[Math.max(low, high)];
      shown[n] += low === high ? 1 : 2;
    };
    for (let i = parts[n].begin; i < parts[n].end; i++) {
      if (!isValue(y[i])) continue;
      total[n]++;
      if (x[i] >= ends) {
        keep();
        bucket = Math.floor((x[i] - start) / wide);
        ends = start + wide * (bucket + 1);
        low = high = i;
      } else if (y[i] < y[low]) low = i;
      else if (y[i] > y[high]) high = i;
    }
    keep();
    return row;
  });
  return { xs, ys, shown, total };
}

function lowerBound(list, value) {
  let low = 0;
  let high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

function isValue(value) {
  return value !== null && value !== undefined;
}
