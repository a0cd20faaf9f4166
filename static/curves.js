// The values that a training logged, by series: a snapshot of the service, then what is heard after it.

export class Curves {
  #series = new Map(); // name → { steps, values }, steps rising
  #notFinite = new Map(); // name → steps whose value was NaN or infinite
  #epochs = new Map(); // step → epoch

  // From the answer of /experiments/{id}/metrics.
  static of({ metrics: { steps, epochs, ...columns }, not_finite = {} }) {
    const curves = new Curves();
    steps.forEach((step, row) => epochs[row] !== null && curves.#epochs.set(step, epochs[row]));
    for (const [name, column] of Object.entries(columns)) {
      const known = steps.map((_, row) => row).filter((row) => column[row] !== null);
      if (known.length) curves.#series.set(name, { steps: known.map((row) => steps[row]), values: known.map((row) => column[row]) });
    }
    for (const [name, places] of Object.entries(not_finite)) curves.#notFinite.set(name, [...places]);
    return curves;
  }

  get names() {
    return [...new Set([...this.#series.keys(), ...this.#notFinite.keys()])];
  }

  // A metrics.logged event; one heard twice changes nothing.
  add({ step, epoch, values }) {
    if (epoch !== undefined && epoch !== null) this.#epochs.set(step, epoch);
    for (const [name, value] of Object.entries(values)) {
      if (value === null) this.#mark(name, step);
      else this.#put(name, step, value);
    }
  }

  // The training goes on from this step: what was logged beyond it will be logged again.
  voidBeyond(step) {
    for (const { steps, values } of this.#series.values()) {
      const end = steps.findLastIndex((each) => each <= step) + 1;
      steps.length = values.length = end;
    }
    for (const [name, steps] of this.#notFinite) this.#notFinite.set(name, steps.filter((each) => each <= step));
  }

  // → { x, y, notFinite } over "step" or "epoch".
  line(name, over) {
    const { steps, values } = this.#series.get(name) ?? { steps: [], values: [] };
    const lost = this.#notFinite.get(name) ?? [];
    if (over !== "epoch") return { x: steps, y: values, notFinite: lost };
    const known = steps.map((_, at) => at).filter((at) => this.#epochs.has(steps[at]));
    return {
      x: known.map((at) => this.#epochs.get(steps[at])), y: known.map((at) => values[at]),
      notFinite: lost.map((step) => this.#epochs.get(step)).filter((epoch) => epoch !== undefined),
    };
  }

  #put(name, step, value) {
    if (!this.#series.has(name)) this.#series.set(name, { steps: [], values: [] });
    const { steps, values } = this.#series.get(name);
    const before = steps.findLastIndex((each) => each <= step);
    const isThere = steps[before] === step;
    steps.splice(isThere ? before : before + 1, isThere ? 1 : 0, step);
    values.splice(isThere ? before : before + 1, isThere ? 1 : 0, value);
  }

  #mark(name, step) {
    const steps = this.#notFinite.get(name) ?? [];
    if (!steps.includes(step)) this.#notFinite.set(name, [...steps, step].sort((a, b) => a - b));
  }
}
