// Work that a burst of events asks for many times and that is done once.

import * as api from "./api.js";
import { say } from "./notices.js";

// → run(), which does the work once for a burst of calls; run.stop() forgets what is due.
export function gather(work, wait = 200) {
  let due;
  const run = () => {
    due ??= setTimeout(() => {
      due = undefined;
      work().catch((error) => say(error.message, "bad"));
    }, wait);
  };
  run.stop = () => clearTimeout(due);
  return run;
}

// → run(), which draws with the next frame, however often it is called until then; run.stop() forgets what is due.
export function drawing(draw) {
  let frame = 0;
  const run = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      draw();
    });
  };
  run.stop = () => {
    cancelAnimationFrame(frame);
    frame = 0;
  };
  return run;
}

// → look(id), a promise: looks a job up and hands it to `take(job)`, or the id of one that is no more to `forget(id)`.
// One look at a time for each job, so that no answer overtakes a newer one; what is asked meanwhile is one more look.
export function lookups(take, forget) {
  const underWay = new Map(); // id → { isAsked, done }
  const look = (id) => {
    const turn = underWay.get(id);
    if (turn) {
      turn.isAsked = true;
      return turn.done;
    }
    const first = { isAsked: true };
    underWay.set(id, first);
    first.done = answer(id, first).finally(() => underWay.delete(id));
    return first.done;
  };
  // For an event: without an answer, the next event or the snapshot after the lost connection brings it.
  look.quietly = (id) => look(id).catch((error) => {
    if (!(error instanceof api.Problem)) throw error;
  });
  return look;

  async function answer(id, turn) {
    while (turn.isAsked) {
      turn.isAsked = false;
      const job = await api.job(id).catch(missing);
      if (job) take(job);
      else forget(id);
    }
  }
}

function missing(error) {
  if (error.status === 404) return null;
  throw error;
}
