// What the page says beside its content: one polite line, a question before something is removed, the token dialog.

import { post } from "./api.js";
import { h, setText } from "./dom.js";

const SETTLES_MS = 50; // a live region is heard when its text changes after it has its place
const line = document.getElementById("announcer");
let fading;

// The one live region: read out by screen readers, and shown for some seconds. What stands on the page already is only
// read out: its tone is "unseen".
export function say(text, tone = "plain") {
  place();
  setText(line, "");
  line.dataset.tone = tone;
  clearTimeout(fading);
  fading = setTimeout(() => {
    setText(line, text);
    fading = setTimeout(() => setText(line, ""), tone === "bad" ? 10_000 : 5_000);
  }, SETTLES_MS);
}

// Behind a modal dialog nothing is heard: the line stands in the dialog while there is one.
function place() {
  const home = [...document.querySelectorAll("dialog:modal")].at(-1) ?? document.body;
  if (line.parentElement !== home) home.append(line);
}

document.addEventListener("close", place, true); // before the dialog goes away, and the line with it

// Runs what a button does: it is disabled meanwhile, and a failure is said.
export async function attempt(button, work) {
  const hadFocus = document.activeElement === button; // which it loses meanwhile
  button.disabled = true;
  try {
    return await work();
  } catch (error) {
    say(error.message, "bad");
    return undefined;
  } finally {
    button.disabled = false;
    if (hadFocus && document.activeElement === document.body) button.focus();
  }
}

// → whether the person said yes.
export function confirm({ title, text, action }) {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog", { "aria-labelledby": "confirm-title", onclose: () => done() },
      h("h2", { id: "confirm-title" }, title),
      h("p", {}, text),
      h(
        "form", { method: "dialog", class: "actions" },
        h("button", { value: "no" }, "Back"),
        h("button", { value: "yes", class: "danger" }, action),
      ),
    );
    const done = () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    };
    document.body.append(dialog);
    dialog.showModal();
  });
}

let asking = null;

// → true once the service took the token; the browser keeps a cookie that scripts cannot read.
export function askForToken() {
  asking ??= new Promise((resolve) => {
    const input = h("input", { type: "password", id: "token", autocomplete: "current-password", required: true, "aria-describedby": "token-wrong" });
    const wrong = h("p", { class: "error", id: "token-wrong" });
    const form = h(
      "form", {},
      h("label", { for: "token" }, "Token"), input, wrong,
      h("p", { class: "note" }, "It is the value of TRAINING_TOKEN that the service was started with."),
      h("div", { class: "actions" }, h("button", { class: "primary" }, "Sign in")),
    );
    const dialog = h("dialog", { "aria-labelledby": "token-title", data: { stays: true } }, h("h2", { id: "token-title" }, "This service wants its token"), form);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        await post("/session", { token: input.value.trim() });
        dialog.close();
        dialog.remove();
        asking = null;
        resolve(true);
      } catch (error) {
        setText(wrong, error.status === 401 ? "That is not the token." : error.message);
        say(wrong.textContent, "unseen");
        input.select();
      }
    });
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}
