"""How many schedules of each row, with which seeds, and what came of them.

`SEED=7` repeats a run, `SEED=7-kills-12` one schedule of it. `FAULTS=long` takes the long set, `FAULTS_<ROW>=n` another
number. What is decided at random comes from the seed; how processes interleave does not, so a replay is another roll
of nearly the same dice.
"""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

IS_LONG = os.environ.get("FAULTS") == "long"
SIZES = {
    # row: (make faults-ci, make faults)
    "kills": (30, 350),  # of two pairs each
    "seams": (12, 150),
    "real": (8, 50),
    "frozen": (5, 80),
    "redis": (5, 80),
    "copies": (5, 100),
    "disk": (5, 50),  # of a full volume and a limit on file sizes each
    "network": (5, 50),
    "children": (1, 20),
    "cancel": (1, 20),  # of nineteen each, twelve of them in a chosen phase
    "sockets": (1, 5),
    "recovery": (1, 5),  # of two and of eight lost runners each
    "webhooks": (1, 20),  # of three kills each
    "away": (1, 2),
    "machine": (60, 1000),  # stories
}
"""Schedules of each row: in CI, in the long run."""

DESIGNED = {
    "kills": 500,
    "seams": 250,
    "real": 100,
    "frozen": 100,
    "redis": 100,
    "copies": 100,
    "disk": 50,
    "network": 50,
    "children": 20,
    "cancel": 20,
    "sockets": 10,
    "machine": 2000,
}
"""What the long run was planned to be, before it was asked to take an hour."""

RECOVERED_WITHIN_S = 60.0
"""From the end of a schedule until all its jobs have ended, what they had still to do included. What a schedule waits
for itself is not part of it."""
GONE_WITHIN_S = 20.0
"""From then until no process, no attempt's lock and no half-made file is left that should be gone."""

_given = os.environ.get("SEED", "")
BASE = _given.partition("-")[0] or str(random.SystemRandom().randrange(10**6))
RESULTS = os.environ.get("FAULTS_RESULTS")
"""A file that gets a line of JSON for every schedule."""


def count(row: str) -> int:
    return int(os.environ.get(f"FAULTS_{row.upper()}") or SIZES[row][IS_LONG])


def schedules(row: str) -> pytest.MarkDecorator:
    """Parametrises a test by the seeds of a row."""
    seeds = [f"{BASE}-{row}-{number}" for number in range(count(row))]
    if _given.count("-") == 2:
        seeds = [_given] if _given.split("-")[1] == row else []
    return pytest.mark.parametrize("seed", seeds)


def note(seed: str, **facts: Any) -> None:
    """Write down what came of a schedule."""
    if RESULTS:
        with Path(RESULTS).open("a") as file:
            file.write(json.dumps({"seed": seed, "row": seed.split("-")[1], "at": time.time(), **facts}) + "\n")
