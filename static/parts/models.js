// The choice of a model: any name can be typed, those the service knows are offered.

import { h } from "../dom.js";

// → the list of names for a control, which is told of it.
export function modelChoice(control, models) {
  const id = `${control.id}-names`;
  control.setAttribute("list", id);
  return h("datalist", { id }, models.map((each) => h("option", { value: each.name }, describe(each))));
}

export function describe(model) {
  if (!model) return "Not a known name: it is taken as a folder, or as a repository of the model hub.";
  const size = model.parameters && `${new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(model.parameters)} parameters`;
  return [size, model.is_local ? "here already" : "is fetched at first use", model.note].filter(Boolean).join(" · ");
}
