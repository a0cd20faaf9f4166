// Live events behind a cursor: first a snapshot, then everything after it, over any number of lost connections.
//
// The page has one socket, and on it a subscription for each `follow`. That learns where the log stands, lets the view
// load its snapshot, and hands it every event from there on. A lost connection resumes behind the last seq heard, so no
// point is missing; when the service says that too much was missed, the snapshot is loaded anew. A snapshot that fails
// is tried again on the same connection.

import { session, socketAddress } from "./api.js";
import { unfold } from "./columns.js";

const SILENCE_MS = 40_000; // the service bookmarks every 15 s: after this long the connection is dead
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;
const LINGER_MS = 2000; // the next view follows something else a moment after the last one has stopped
const UNAUTHENTICATED = 4401;
const BAD_FRAME = 4400;

// Fires "change"; `state` is the worst of what is open: { name, at?, trouble? }, `at` when it is tried again.
export const connection = new EventTarget();
connection.state = { name: "idle" };
connection.heardAt = null;

const WORST_FIRST = ["locked", "failing", "reconnecting", "connecting", "catching up", "live", "gone"];

// → stop(); stop.reload() loads the snapshot anew, for another filter. Events of `jobs` (ids) or of all, of `types` or of
// all. `load(isNewest)` is awaited before the first event, after a reset and on reload: once `isNewest()` is false, a
// later one is under way and its answer is not for the page. `onEvents` gets [{ seq?, event }, …].
export function follow({ jobs, types, load = async () => {}, onEvents, onGone = () => {} }) {
  const follower = new Follower({ jobs, types, load, onEvents, onGone });
  line.add(follower);
  const stop = () => line.remove(follower);
  stop.reload = () => follower.reload();
  return stop;
}

// How long to wait before the next try: longer each time until all is well.
class Patience {
  wait = FIRST_WAIT_MS;

  next(atLeast = 0) {
    const wait = Math.max(atLeast, this.wait * (0.5 + Math.random())); // so that a thousand pages do not come back as one
    this.wait = Math.min(LONGEST_WAIT_MS, this.wait * 2);
    return wait;
  }

  restore() {
    this.wait = FIRST_WAIT_MS;
  }
}

// The page's one socket. It is open while somebody follows something.
class Line {
  followers = new Map(); // name of the subscription → follower
  patience = new Patience();
  state = { name: "idle" };
  socket = null;
  isOpen = false; // and welcomed
  names = 0;
  comeBackAfter = 0; // ms, as the service asked for when it said goodbye

  add(follower) {
    clearTimeout(this.linger);
    this.name(follower);
    if (this.isOpen) follower.subscribe();
    else if (this.state.name === "idle") this.connect();
    publish();
  }

  remove(follower) {
    if (!this.followers.delete(follower.sub)) return;
    follower.stop();
    if (this.isOpen) this.say({ frame: "unsubscribe", sub: follower.sub });
    if (!this.followers.size) this.linger = setTimeout(() => this.close(), LINGER_MS);
    publish();
  }

  name(follower) {
    this.followers.delete(follower.sub);
    follower.sub = String(++this.names);
    this.followers.set(follower.sub, follower);
  }

  connect() {
    this.drop();
    this.stand({ name: "connecting" });
    const socket = new WebSocket(socketAddress("/ws"));
    this.socket = socket;
    socket.onmessage = (message) => this.socket === socket && this.hear(JSON.parse(message.data));
    socket.onclose = (close) => this.socket === socket && this.lost(close.code);
    this.watch();
  }

  close() {
    this.drop();
    this.stand({ name: "idle" });
  }

  drop() {
    clearTimeout(this.timer);
    clearTimeout(this.watchdog);
    const { socket } = this;
    this.socket = null;
    this.isOpen = false;
    socket?.close();
  }

  say(frame) {
    this.socket.send(JSON.stringify(frame));
  }

  hear(frame) {
    connection.heardAt = Date.now();
    this.watch();
    if (frame.frame === "welcome") this.welcome();
    else if (frame.frame === "ping") this.say({ frame: "pong" });
    else if (frame.frame === "bye") this.comeBackAfter = 1000 * frame.retry_after_s;
    else this.followers.get(frame.sub)?.hear(frame); // of one that was left just now something may still come
  }

  welcome() {
    this.isOpen = true;
    this.stand({ name: "live" });
    for (const follower of this.followers.values()) follower.subscribe();
  }

  lost(code) {
    this.drop();
    for (const follower of this.followers.values()) follower.lost();
    if (!this.followers.size) return this.stand({ name: "idle" });
    if (code === UNAUTHENTICATED) {
      this.again = () => this.connect();
      this.stand({ name: "locked" });
      session.dispatchEvent(new Event("unauthenticated"));
    } else if (code === BAD_FRAME) {
      this.again = () => location.reload();
      this.stand({ name: "failing", trouble: "The service is newer than this page: load the page anew." });
    } else {
      const wait = this.patience.next(this.comeBackAfter);
      this.comeBackAfter = 0;
      this.again = () => this.connect();
      this.timer = setTimeout(this.again, wait);
      this.stand({ name: "reconnecting", at: Date.now() + wait });
    }
  }

  watch() {
    clearTimeout(this.watchdog);
    this.watchdog = setTimeout(() => this.socket?.close(), SILENCE_MS);
  }

  stand(state) {
    this.state = state;
    publish();
  }
}

// One subscription.
class Follower {
  constructor(options) {
    Object.assign(this, options);
    this.position = null; // the last seq that is part of what the view shows; null before the first snapshot
    this.patience = new Patience();
    this.state = { name: "connecting" };
    this.waiting = null; // events that arrive while the snapshot loads
  }

  subscribe() {
    const { sub, jobs, types, position } = this;
    this.waiting = null;
    this.stand({ name: position === null ? "connecting" : "catching up" });
    line.say({ frame: "subscribe", sub, jobs, all: !jobs, types, after: position ?? undefined, initial: "none" });
  }

  stop() {
    clearTimeout(this.timer);
    this.waiting = null; // a snapshot that is still loading hands nothing to a view that was left
    this.isOver = true;
  }

  async hear(frame) {
    if (frame.frame === "events") this.take(unfold(frame), frame.to_seq);
    else if (frame.frame === "bookmark") await this.bookmark(frame.seq);
    else if (frame.frame === "reset") await this.beginAnew();
    else if (frame.frame === "error") this.refused(frame);
  }

  // Nothing is missing up to here: the subscription has begun, or has caught up, or nothing happened for a while.
  async bookmark(seq) {
    if (this.position === null) {
      this.position = seq;
      return this.beginAnew();
    }
    this.take([], seq);
    if (!this.waiting) this.caughtUp();
  }

  refused({ code, message }) {
    if (code === "job_not_found") {
      this.stand({ name: "gone" });
      return this.onGone();
    }
    if (code === "bad_cursor") this.position = null; // the service's log is another one now: begin anew
    line.name(this); // the old name may still be spoken of
    this.later(() => line.isOpen && this.subscribe(), message);
  }

  beginAnew() {
    this.stand({ name: "catching up" });
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
      if (isNewest()) this.later(() => this.beginAnew(), error.message);
      return;
    }
    if (!isNewest()) return;
    this.waiting = null;
    if (waiting.length) this.onEvents(waiting);
    this.caughtUp();
  }

  reload() {
    if (this.position === null) return; // its snapshot is yet to come
    if (!line.isOpen) this.position = null; // and so it is when the connection is back
    else if (this.state.name === "live") this.begin();
    else this.beginAnew();
  }

  take(events, to) {
    if (this.position === null) return; // the snapshot to come has it
    const fresh = events.filter(({ seq }) => seq === undefined || seq > this.position);
    this.position = Math.max(this.position, to);
    if (this.waiting) this.waiting.push(...fresh);
    else if (fresh.length) this.onEvents(fresh);
  }

  caughtUp() {
    if (this.isOver || this.state.name !== "catching up") return;
    clearTimeout(this.timer);
    this.patience.restore();
    line.patience.restore();
    this.stand({ name: "live" });
  }

  lost() {
    clearTimeout(this.timer);
    if (this.waiting) this.position = null; // lost before the snapshot was complete
    this.waiting = null;
  }

  // Does it after a wait that grows until all is well, or when the person says so.
  later(work, trouble) {
    const wait = this.patience.next();
    this.again = work;
    clearTimeout(this.timer);
    this.timer = setTimeout(work, wait);
    this.stand({ name: "failing", trouble, at: Date.now() + wait });
  }

  stand(state) {
    this.state = state;
    publish();
  }
}

const line = new Line();

// Tries at once instead of waiting: after the token was given, when the network is back, when the page is looked at.
export function reconnectNow() {
  if (["reconnecting", "failing", "locked"].includes(line.state.name)) line.again();
  for (const follower of line.followers.values()) if (line.isOpen && follower.state.name === "failing") follower.again();
}

addEventListener("online", reconnectNow);
document.addEventListener("visibilitychange", () => document.hidden || reconnectNow());

function publish() {
  const states = line.isOpen || line.state.name === "idle" ? [...line.followers.values()].map(({ state }) => state) : [line.state];
  const worst = WORST_FIRST.find((name) => states.some((state) => state.name === name));
  connection.state = states.find((state) => state.name === worst) ?? { name: "idle" };
  connection.dispatchEvent(new Event("change"));
}
