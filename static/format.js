// Numbers, sizes and times as people read them. Everything takes null and gives a dash.

const NONE = "–";
const WHOLE = new Intl.NumberFormat("en"); // made once: toLocaleString makes one at each call
const SHORT = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

export function number(value) {
  if (value === null || value === undefined) return NONE;
  if (!Number.isFinite(value)) return String(value);
  if (Number.isInteger(value)) return WHOLE.format(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return SHORT.format(value);
}

export function percent(fraction) {
  return fraction === null || fraction === undefined ? NONE : `${(100 * fraction).toFixed(1)} %`;
}

export function bytes(count) {
  if (count === null || count === undefined) return NONE;
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const power = count < 1000 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(count) / 3));
  return `${(count / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

// Memory, everywhere by the same measure as in the plots: the service's megabytes are of 1024 × 1024 bytes.
export function megabytes(count) {
  return count === null || count === undefined ? NONE : `${number(count / 2 ** 20)} MB`;
}

// A setting as it was written: 0.0003, not 3.00e-4.
export function asWritten(value) {
  if (value === null || value === undefined) return NONE;
  return typeof value === "boolean" ? (value ? "yes" : "no") : String(value);
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return NONE;
  if (seconds < 9.95) return `${Math.max(0, seconds).toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

export function ago(time, now = Date.now()) {
  const seconds = (now - new Date(time)) / 1000;
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  if (seconds < 7 * 86400) return `${Math.floor(seconds / 86400)} d ago`;
  return new Date(time).toLocaleDateString();
}

export function moment(time) {
  return time ? new Date(time).toLocaleString() : NONE;
}

export function secondsBetween(from, to) {
  return from ? (new Date(to ?? Date.now()) - new Date(from)) / 1000 : null;
}

export function plural(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}
