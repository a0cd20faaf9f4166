// <time-ago datetime="…">: how long ago, kept up to date. One timer serves all of them.

import { ago, moment } from "../format.js";

const shown = new Set();

class TimeAgo extends HTMLElement {
  static observedAttributes = ["datetime"];

  connectedCallback() {
    shown.add(this);
    this.update();
  }

  disconnectedCallback() {
    shown.delete(this);
  }

  attributeChangedCallback() {
    this.title = moment(this.getAttribute("datetime"));
    if (this.isConnected) this.update();
  }

  update() {
    const text = ago(this.getAttribute("datetime"));
    if (this.textContent !== text) this.textContent = text;
  }
}

customElements.define("time-ago", TimeAgo);
setInterval(() => shown.forEach((element) => element.update()), 5000);
