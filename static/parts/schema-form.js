// A form drawn from a JSON Schema: a control for each field, checked by the schema's own bounds, values as objects.
//
// A field is named by its path, "config.lora_rank". Where a schema has no words of its own, the view gives them:
// `words` is { path: { title, description, options } }. The view also says where fields stand: it places single ones
// by `element(path)` and takes the rest by `group(name)`; what the schema marks as advanced is folded away. `only` are
// the paths it is about, when not all. What a person changed can stand in the address, each field by its last name.

import { h, setText } from "../dom.js";

let forms = 0; // ids of controls are unique on the page

export function schemaForm(root, { words = {}, only, onInput = () => {} } = {}) {
  const prefix = `form-${++forms}`;
  const fields = new Map();
  for (const [path, schema, isRequired] of leaves(root, resolve(root, root))) {
    if (!only || only.includes(path)) fields.set(path, new Field(prefix, path, { ...schema, ...words[path] }, isRequired, () => onInput(path)));
  }
  const all = [...fields.values()];
  const field = (path) => fields.get(path);
  const began = new Map(); // path → the text it began with
  const folds = []; // [details, the fields in it]

  return {
    control: (path) => field(path).control,
    element: (path) => field(path).element,
    value: (path) => field(path).value,
    text: (path) => field(path).text,
    write: (path, text) => field(path).write(text),
    groups: [...new Set(all.map(({ schema }) => schema["x-group"]).filter(Boolean))],
    group(name) {
      const members = all.filter(({ schema, element }) => schema["x-group"] === name && !element.parentNode);
      const [plain, advanced] = [false, true].map((is) => members.filter(({ schema }) => Boolean(schema["x-advanced"]) === is));
      const details = h("details", {}, h("summary", {}, "More settings"), grid(advanced));
      folds.push([details, advanced]);
      return [grid(plain), advanced.length > 0 && details];
    },

    // Sets all fields: to these values, or to their defaults.
    fill(values) {
      for (const [path, each] of fields) {
        const value = path.split(".").reduce((part, key) => part?.[key], values);
        each.write(textOf(value === undefined ? each.schema.default : value));
      }
      unfold();
    },

    // From here on, `changes` are those to what stands in the form now, or now in these fields.
    begin(paths = fields.keys()) {
      for (const path of paths) began.set(path, field(path).text);
    },

    // → { name: text, or null where it is as it began }, for the address; a field that was emptied is "null" there.
    changes() {
      return Object.fromEntries([...fields].map(([path, { name, text }]) => [name, text === began.get(path) ? null : text || "null"]));
    },

    restore(query) {
      for (const each of all) {
        const text = query.get(each.name);
        if (text !== null) each.write(text === "null" ? "" : text);
      }
      unfold();
    },

    // What differs from the defaults, and what has none.
    values() {
      const found = {};
      for (const [path, { value, schema, isRequired }] of fields) {
        if (isRequired || !same(value, schema.default)) put(found, path.split("."), value);
      }
      return found;
    },

    // → whether every field is right; says beside each what is not, and goes to the first.
    check() {
      all.forEach((each) => each.say(each.problem()));
      return !goToFirst(all);
    },

    // Puts what the service found beside its fields; → the errors that belong to no field.
    show(errors) {
      all.forEach((each) => each.say(""));
      const homeless = errors.filter(({ path, message }) => {
        const home = field(path.replace(/\[\d+\]$/, ""));
        home?.say(message);
        return !home;
      });
      goToFirst(all);
      return homeless;
    },
  };

  // What is set to something unusual is seen.
  function unfold() {
    for (const [details, members] of folds) details.open ||= members.some(({ value, schema }) => !same(value, schema.default));
  }
}

function goToFirst(fields) {
  const wrong = fields.find(({ control }) => control.ariaInvalid);
  for (let at = wrong?.element; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  wrong?.control.focus();
  return wrong;
}

function grid(fields) {
  return h("div", { class: "fields" }, fields.map(({ element }) => element));
}

class Field {
  constructor(prefix, path, schema, isRequired, onInput) {
    const name = path.split(".").at(-1);
    const id = `${prefix}-${path}`;
    Object.assign(this, { name, schema, isRequired });
    this.message = h("p", { class: "error", id: `${id}-error` });
    const help = h("p", { class: "note", id: `${id}-help` }, schema.description);
    this.control = controlOf(schema, { id, name, "aria-describedby": `${id}-error ${id}-help` });
    const label = h("label", { for: id }, schema.title ?? name.replaceAll("_", " "));
    const isCheckbox = this.control.type === "checkbox";
    const head = isCheckbox ? h("div", { class: "check" }, this.control, label) : [label, this.control];
    this.element = h("div", { class: "field", data: { field: name } }, head, this.message, help);
    this.write(textOf(schema.default));
    this.control.addEventListener("input", () => {
      this.say("");
      onInput();
    });
    this.control.addEventListener("change", () => this.say(this.problem()));
  }

  get text() {
    return this.control.type === "checkbox" ? String(this.control.checked) : this.control.value.trim();
  }

  get value() {
    const { schema, text } = this;
    if (schema.type === "array") return text.split(",").map((part) => part.trim()).filter(Boolean);
    if (text === "") return schema.nullable ? null : undefined;
    if (isNumeric(schema)) return Number(text);
    return schema.type === "boolean" ? text === "true" : text;
  }

  write(text) {
    if (this.control.type === "checkbox") this.control.checked = text === "true";
    else this.control.value = text;
    this.say("");
  }

  say(message) {
    setText(this.message, message);
    this.control.ariaInvalid = message ? "true" : null;
  }

  // What is wrong with what stands in the control, as a sentence; empty when nothing is.
  problem() {
    const { schema, value, control } = this;
    if (control.validity.badInput) return "This is not a number.";
    if (value === undefined) return "This must be filled in.";
    if (value === null) return "";
    if (isNumeric(schema)) return numberProblem(schema, value);
    if (Array.isArray(value)) return listProblem(schema, value);
    return value.length > schema.maxLength ? `At most ${schema.maxLength} characters.` : "";
  }
}

function numberProblem({ type, minimum, maximum, exclusiveMinimum }, value) {
  if (type === "integer" && !Number.isInteger(value)) return "This must be a whole number.";
  if (value < minimum) return `At least ${minimum}.`;
  if (value > maximum) return `At most ${maximum}.`;
  return value <= exclusiveMinimum ? `More than ${exclusiveMinimum}.` : "";
}

function listProblem({ maxItems, items }, value) {
  if (value.length > maxItems) return `At most ${maxItems}.`;
  return value.some((part) => part.length > items.maxLength) ? `At most ${items.maxLength} characters each.` : "";
}

function controlOf(schema, props) {
  if (schema.type === "boolean" && !schema.nullable) return h("input", { ...props, type: "checkbox" });
  if (schema.enum || schema.type === "boolean") return choice(schema, props);
  if (isNumeric(schema)) {
    const { minimum: min, maximum: max, type, nullable } = schema;
    return h("input", { ...props, type: "number", min, max, step: type === "integer" ? 1 : "any", placeholder: nullable ? "none" : null });
  }
  const placeholder = schema.type === "array" ? "separated by commas" : null;
  return h("input", { ...props, placeholder, maxlength: schema.type === "array" ? null : schema.maxLength, autocomplete: "off", spellcheck: "false" });
}

function choice({ enum: words, options = {}, nullable }, props) {
  const names = words ?? ["true", "false"];
  const texts = words ? options : { true: "yes", false: "no" };
  const listed = words ? Object.keys(options).filter((name) => words.includes(name)) : []; // in the order of the words given
  const all = [...new Set([...listed, ...names])];
  return h("select", props, nullable && h("option", { value: "" }, "automatic"), all.map((name) => h("option", { value: name }, texts[name] ?? name)));
}

// The fields of an object schema and of those inside it, without those that have one possible value only.
function* leaves(root, { properties, required = [] }, path = "") {
  for (const [name, given] of Object.entries(properties)) {
    const schema = resolve(root, given);
    if (schema.properties) yield* leaves(root, schema, `${path}${name}.`);
    else if (!("const" in schema) && schema.enum?.length !== 1) yield [path + name, schema, required.includes(name)];
  }
}

// Follows references, and makes "this or null" a nullable this.
function resolve(root, schema) {
  const { $ref, anyOf, ...own } = schema;
  if ($ref) {
    const { title, description, ...named } = resolve(root, $ref.slice(2).split("/").reduce((part, key) => part[key], root));
    return { ...named, ...own }; // the title of a type is no title of a field
  }
  const options = anyOf?.filter(({ type }) => type !== "null") ?? [];
  return options.length === 1 ? { ...resolve(root, options[0]), ...own, nullable: anyOf.length > 1 } : schema;
}

function put(target, [name, ...rest], value) {
  if (rest.length) put((target[name] ??= {}), rest, value);
  else target[name] = value;
}

const isNumeric = ({ type }) => type === "integer" || type === "number";
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const textOf = (value) => Array.isArray(value) ? value.join(", ") : String(value ?? "");
