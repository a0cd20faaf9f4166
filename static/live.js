// Live events behind a cursor: first a snapshot, then everything after it, over any number of lost connections.
//
// `follow` opens a socket, learns where the log stands, lets the view load its snapshot, and hands it every event from
// there on. A lost connection resumes behind the last seq heard, so no point is missing; when the service says that
// too much was missed, the snapshot is loaded anew. A snapshot that fails is tried again on the same connection.

import { session, socketAddress } from "./api.js";

const SILENCE_MS = 40_000; // the service bookmarks every 15 s: after this long the connection is dead
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;
const REPLAY_MS = 1000; // what was missed begins to come within this time, or nothing was missed
const NO_SUCH_JOB = 4404;
const UNAUTHENTICATED = 4401;
const BAD_CURSOR = 4400;

const followers = new Set();

// Fires "change"; `state` is the worst of what is open: { name, at?, trouble? }, `at` when it is tried again.
export const connection = new EventTarget();
connection.state = { name: "idle" };
connection.heardAt = null;

const WORST_FIRST = ["locked", "failing", "reconnecting", "connecting", "catching up", "live", "gone"];

// → stop(); stop.reload() loads the snapshot anew, for another filter. `load(isNewest)` is awaited before the first
// event, after a reset and on reload: once `isNewest()` is false, a later one is under way and its answer is not for
// the page. `onEvents` gets [{ seq?, event }, …].
export function follow({ path = "/ws", types, load = async () => {}, onEvents, onGone = () => {} }) {
  const follower = new Follower({ path, types, load, onEvents, onGone });
  followers.add(follower);
  follower.connect();
  const stop = () => {
    follower.stop();
    followers.delete(follower);
    publish();
  };
  stop.reload = () => follower.reload();
  return stop;
}

class Follower {
  constructor(options) {
    Object.assign(this, options);
    this.position = null; // the last seq that is part of what the view shows; null before the first snapshot
    this.wait = FIRST_WAIT_MS;
    this.state = { name: "connecting" };
    this.waiting = null; // events that arrive while the snapshot loads
  }

  connect() {
    clearTimeout(this.timer);
    this.socket?.close();
    this.waiting = null;
    this.say({ name: "connecting" });
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
    else if (frame.frame === "bookmark") this.take([], frame.seq);
    else if (frame.frame === "reset") await this.beginAnew();
    else if (frame.frame === "bye") this.wait = Math.max(this.wait, 1000 * (frame.retry_after_s ?? 1));
  }

  async welcome(frame) {
    if (this.position === null) {
      this.position = frame.after;
      return this.beginAnew();
    }
    this.say({ name: "catching up" });
    this.timer = setTimeout(() => this.caughtUp(), REPLAY_MS);
  }

  beginAnew() {
    this.say({ name: "catching up" });
    return this.begin();
  }

  // Loads the snapshot; what is heard meanwhile waits and is applied to it.
  async begin() {
    const waiting = (this.waiting = []);
    const isNewest = () => this.waiting === waiting;
    clearTimeout(this.timer);
    try {
      await this.load(isNewest);
    } catch (error) {
      if (isNewest()) this.later(() => this.beginAnew(), { name: "failing", trouble: error.message });
      return;
    }
    if (!isNewest()) return;
    this.waiting = null;
    if (waiting.length) this.onEvents(waiting);
    this.caughtUp();
  }

  reload() {
    if (this.state.name === "connecting" && this.position === null) return; // its snapshot is yet to come
    if (this.position !== null && this.socket?.readyState === WebSocket.OPEN) return this.state.name === "live" ? this.begin() : this.beginAnew();
    this.position = null;
    this.connect();
  }

  take(events, to) {
    const fresh = events.filter(({ seq }) => seq === undefined || seq > (this.position ?? -1));
    if (this.position !== null) this.position = Math.max(this.position, to);
    if (this.waiting) return this.waiting.push(...fresh);
    if (fresh.length) this.onEvents(fresh);
    this.caughtUp();
  }

  caughtUp() {
    if (this.state.name !== "catching up") return;
    clearTimeout(this.timer);
    this.wait = FIRST_WAIT_MS;
    this.say({ name: "live" });
  }

  lost(code) {
    clearTimeout(this.watchdog);
    clearTimeout(this.timer);
    if (code === NO_SUCH_JOB) {
      this.say({ name: "gone" });
      return this.onGone();
    }
    if (code === BAD_CURSOR) this.position = null; // the service's log is another one now: begin anew
    if (this.waiting) this.position = null; // lost before the snapshot was complete
    this.waiting = null;
    if (code === UNAUTHENTICATED) {
      this.again = () => this.connect();
      this.say({ name: "locked" });
      session.dispatchEvent(new Event("unauthenticated"));
      return;
    }
    this.later(() => this.connect(), { name: "reconnecting" });
  }

  // Does it after a wait that grows until all is well, or when the person says so.
  later(work, state) {
    const wait = this.wait * (0.5 + Math.random()); // so that a thousand pages do not come back as one
    this.wait = Math.min(LONGEST_WAIT_MS, this.wait * 2);
    this.again = work;
    clearTimeout(this.timer);
    this.timer = setTimeout(work, wait);
    this.say({ ...state, at: Date.now() + wait });
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
    if (["reconnecting", "failing", "locked"].includes(follower.state.name)) follower.again();
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
