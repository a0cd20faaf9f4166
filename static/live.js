// Live events behind a cursor: first a snapshot, then everything after it, over any number of lost connections.
//
// `follow` opens a socket, learns where the log stands, lets the view load its snapshot, and hands it every event from
// there on. A lost connection resumes behind the last seq heard, so no point is missing; when the service says that
// too much was missed, the snapshot is loaded anew.

import { session, socketAddress } from "./api.js";

const SILENCE_MS = 40_000; // the service bookmarks every 15 s: after this long the connection is dead
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;
const NO_SUCH_JOB = 4404;
const UNAUTHENTICATED = 4401;
const BAD_CURSOR = 4400;

const followers = new Set();

export const connection = new EventTarget(); // fires "change"; `state` is the worst of what is open
connection.state = { name: "idle" };
connection.heardAt = null;

const WORST_FIRST = ["gone", "locked", "reconnecting", "connecting", "catching up", "live"];

// → stop(). `load` is awaited before the first event and after a reset; `onEvents` gets [{ seq?, event }, …].
export function follow({ path = "/ws", types, load = async () => {}, onEvents, onGone = () => {} }) {
  const follower = new Follower({ path, types, load, onEvents, onGone });
  followers.add(follower);
  follower.connect();
  return () => {
    follower.stop();
    followers.delete(follower);
    publish();
  };
}

class Follower {
  constructor(options) {
    Object.assign(this, options);
    this.position = null; // the last seq that is part of what the view shows; null before the first snapshot
    this.wait = FIRST_WAIT_MS;
    this.state = { name: "connecting" };
  }

  connect() {
    clearTimeout(this.timer);
    this.say({ name: "connecting" });
    this.waiting = null; // events that arrive while the snapshot loads
    const query = { after: this.position ?? "now", types: this.types?.join(",") };
    const socket = new WebSocket(socketAddress(this.path, query));
    this.socket = socket;
    socket.onmessage = (message) => this.socket === socket && this.hear(JSON.parse(message.data));
    socket.onclose = (close) => this.socket === socket && this.lost(close.code);
    this.watch();
  }

  stop() {
    clearTimeout(this.timer);
    clearTimeout(this.watchdog);
    const { socket } = this;
    this.socket = null;
    this.waiting = null; // a snapshot that is still loading hands nothing to a view that was left
    socket?.close();
  }

  async hear(frame) {
    connection.heardAt = Date.now();
    this.watch();
    if (frame.frame === "welcome") await this.welcome(frame);
    else if (frame.frame === "events") this.take(frame.events, frame.to_seq);
    else if (frame.frame === "bookmark") this.reach(frame.seq);
    else if (frame.frame === "reset") this.begin(frame.seq ?? null);
    else if (frame.frame === "bye") this.wait = Math.max(this.wait, 1000 * (frame.retry_after_s ?? 1));
  }

  async welcome(frame) {
    this.wait = FIRST_WAIT_MS;
    if (this.position === null) await this.begin(frame.after);
    else this.say({ name: "live" });
  }

  // Loads the snapshot; what is heard meanwhile waits and is applied to it.
  async begin(position) {
    const { socket } = this;
    const waiting = (this.waiting = []);
    if (position !== null) this.position = position;
    this.say({ name: "catching up" });
    try {
      await this.load();
    } catch {
      this.position = null; // the view shows why; try again with the next connection
      if (this.socket === socket) socket?.close();
      return;
    }
    if (this.waiting !== waiting) return;
    this.waiting = null;
    if (waiting.length) this.onEvents(waiting);
    this.say({ name: "live" });
  }

  take(events, to) {
    const fresh = events.filter(({ seq }) => seq === undefined || seq > (this.position ?? -1));
    this.reach(to);
    if (this.waiting) this.waiting.push(...fresh);
    else if (fresh.length) this.onEvents(fresh);
  }

  reach(seq) {
    if (this.position !== null) this.position = Math.max(this.position, seq);
  }

  lost(code) {
    clearTimeout(this.watchdog);
    if (code === NO_SUCH_JOB) {
      this.say({ name: "gone" });
      return this.onGone();
    }
    if (code === BAD_CURSOR) this.position = null; // the service's log is another one now: begin anew
    if (this.waiting) this.position = null; // lost before the snapshot was complete
    if (code === UNAUTHENTICATED) {
      this.say({ name: "locked" });
      session.dispatchEvent(new Event("unauthenticated"));
      return;
    }
    const wait = this.wait * (0.5 + Math.random()); // so that a thousand pages do not come back as one
    this.wait = Math.min(LONGEST_WAIT_MS, this.wait * 2);
    this.say({ name: "reconnecting", at: Date.now() + wait });
    this.timer = setTimeout(() => this.connect(), wait);
  }

  watch() {
    clearTimeout(this.watchdog);
    this.watchdog = setTimeout(() => this.socket?.close(), SILENCE_MS);
  }

  say(state) {
    this.state = state;
    publish();
  }
}

// Tries at once instead of waiting: after the token was given, when the network is back, when the page is looked at.
export function reconnectNow() {
  for (const follower of followers) {
    if (["reconnecting", "locked"].includes(follower.state.name)) follower.connect();
  }
}

addEventListener("online", reconnectNow);
document.addEventListener("visibilitychange", () => document.hidden || reconnectNow());

function publish() {
  const states = [...followers].map((follower) => follower.state);
  const worst = WORST_FIRST.find((name) => states.some((state) => state.name === name));
  connection.state = states.find((state) => state.name === worst) ?? { name: "idle" };
  connection.dispatchEvent(new Event("change"));
}
