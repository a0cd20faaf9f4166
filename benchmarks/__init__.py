"""What is timed: one file a claim. `python -m benchmarks` runs all of them, `python -m benchmarks rest` one.

Each prints ratios against a named baseline that runs in the same minute on the same machine, so a figure from a slow
laptop means the same as one from a fast server. Nothing here is asserted by the tests.

Read in this order: `report` (what a benchmark gives) · `programs` (the real service, as a process) · `wrk` (load) ·
`document` (writes docs/benchmarks.md) · then the claims: `rest` (its baseline is `twin`) · `start` (`fresh`) ·
`live` (`channels`; its `source` says, its `listeners` hear) · `paint` · `data` (`export` writes what it prepares) ·
`leak` (accuracies instead of times) · `train` (its baseline is `stock`) · `plan` (bytes; `step` is one of its
trainings).

A benchmark is a module with a sentence `CLAIM` and a function `run() -> Report`, named in `__main__`.
"""
