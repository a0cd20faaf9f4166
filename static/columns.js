// The events of a frame one by one, in the order of seq: where it is merged, points stand in columns beside the rest.

export function unfold({ events, points = [] }) {
  if (!points.length) return events;
  const rows = points.flatMap(rowsOf).sort((a, b) => b.seq - a.seq); // the last one comes first out of it
  const before = []; // of each event the seq before which it stands: of progress, which has none, that of the next one
  for (let i = events.length - 1, limit = Infinity; i >= 0; i--) before[i] = limit = events[i].seq ?? limit;
  const unfolded = [];
  const rowsBefore = (seq) => {
    while (rows.length && rows.at(-1).seq < seq) unfolded.push(rows.pop());
  };
  events.forEach((numbered, i) => {
    rowsBefore(before[i]);
    unfolded.push(numbered);
  });
  rowsBefore(Infinity);
  return unfolded;
}

function rowsOf({ job_id, attempt, seq, n, at, step, values, epoch, total_steps, total_epochs }) {
  const columns = Object.entries(values);
  return seq.map((number, i) => ({
    seq: number,
    event: {
      type: "metrics.logged", job_id, attempt, n: n[i], at: at[i], step: step[i], epoch: epoch?.[i], total_steps, total_epochs,
      values: Object.fromEntries(columns.map(([name, column]) => [name, column[i]])),
    },
  }));
}
