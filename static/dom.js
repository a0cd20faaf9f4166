// Elements as expressions: h("p", { class: "note" }, "text", child). Text enters the page as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const AS_PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "indeterminate", "selected", "open", "max"]);

export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

// Puts new children in the place of the old ones; null and false are nothing.
export function replace(element, ...children) {
  element.replaceChildren(...flat(children));
  return element;
}

// Sets text only where it differs, so that a selection or a screen reader is not disturbed by what stays the same.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Puts rows in this order and moves none that stands right, so that the focus stays; that of a row which goes away is
// given to the one that takes its place.
export function arrange(list, wanted) {
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  const at = [...list.children].findIndex((row) => row.contains(focused));
  const kept = new Set(wanted);
  for (const row of [...list.children]) if (!kept.has(row)) row.remove();
  wanted.forEach((row, place) => list.children[place] === row || list.insertBefore(row, list.children[place] ?? null));
  if (!focused || focused === document.activeElement) return;
  const next = focused.isConnected ? focused : wanted[Math.min(at, wanted.length - 1)]?.querySelector("a, button, input");
  next?.focus({ preventScroll: true });
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props)) set(element, name, value);
  element.append(...flat(children));
  return element;
}

function set(element, name, value) {
  if (value === null || value === undefined) return;
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
  else if (name === "data") Object.assign(element.dataset, value);
  else if (name === "style") for (const [property, setting] of Object.entries(value)) element.style.setProperty(property, setting);
  else if (AS_PROPERTIES.has(name) && name in element) element[name] = value;
  else if (value === true) element.setAttribute(name, "");
  else if (value !== false) element.setAttribute(name, value);
}

function flat(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}
