// Work that a burst of events asks for many times and that is done once.

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
