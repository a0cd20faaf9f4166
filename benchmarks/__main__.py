"""`python -m benchmarks [NAME …]`: run benchmarks, print their tables, write `docs/benchmarks.md`.

A full run takes most of an hour. Let nothing else run meanwhile.
"""

import argparse
from types import ModuleType

from benchmarks import data, document, leak, live, paint, plan, rest, resume, start, train
from benchmarks.report import Report

BENCHMARKS: dict[str, ModuleType] = {
    "rest": rest,
    "start": start,
    "live": live,
    "paint": paint,
    "data": data,
    "leak": leak,
    "train": train,
    "resume": resume,
    "plan": plan,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    chosen = parser.parse_args().names or list(BENCHMARKS)
    if unknown := set(chosen) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    for name in chosen:
        print(f"\n== {name}: {BENCHMARKS[name].CLAIM}", flush=True)
        report: Report = BENCHMARKS[name].run()
        print(report.as_markdown(), flush=True)
        document.write(name, report)
        if report.missed and not document.by_hand(document.DOCUMENT.read_text(), name):
            print(f"An aim was missed: say why below the figures of {name} in {document.DOCUMENT.name}.")


if __name__ == "__main__":
    main()
