"""`make faults`: the long set, and the report of it that is committed: `python tests/faults/report.py [row …]`.

Without arguments all rows, about an hour on two cores. Each row is a run of pytest of its own, so that one that breaks
leaves the others their figures; several run side by side, because most of their time they wait. `FAULTS=ci` takes the
short set instead.
"""

import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import plan

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "docs" / "faults-report.md"
ROWS = {
    # row: (file, -k, what is done)
    "kills": (
        "test_kills.py",
        "",
        "SIGKILL of two random pairs: service, runner, child, zygote, Redis; fake trainer",
    ),
    "away": ("test_service.py", "is_stopped", "the service away while a job trains"),
    "seams": ("test_seams.py", "", "SIGKILL at named seams of service, runner and child; fake trainer"),
    "real": ("test_real.py", "", "SIGKILL of two processes; real trainer"),
    "frozen": ("test_transport.py", "stands_still", "SIGSTOP past the lease, also with the child writing on"),
    "redis": ("test_transport.py", "five_jobs", "Redis restarted with its AOF, replaced by an empty one, flushed"),
    "copies": ("test_transport.py", "copy", "three copies of the database at random instants"),
    "network": ("test_transport.py", "network", "connections cut, delayed, half-open"),
    "disk": ("test_disk.py", "", "a full volume; a limit on file sizes"),
    "children": ("test_children.py", "children_that or kills_its_runner", "bad manners; a poison job"),
    "cancel": ("test_children.py", "cancel", "cancel in each phase, and crossing the end"),
    "sockets": ("test_sockets.py", "", "many sockets while the service is killed"),
    "webhooks": ("test_service.py", "receiver_hears", "SIGKILL of the service while it tells a receiver of webhooks"),
    "machine": ("test_machine.py", "", "stories of the state machine on a lossy bus"),
    "recovery": ("test_recovery.py", "", "lost runners with the default lease"),
}
ALONE = ("recovery",)
"""Rows that measure a time of which something is promised."""
LANES = 3
"""How many rows run side by side: of two cores they want half of one each."""


def main(rows: list[str]) -> int:
    seed = os.environ.get("SEED") or str(int.from_bytes(os.urandom(2), "big"))
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.jsonl"
        results.touch()
        failed = _run_all(rows or list(ROWS), seed, results)
        noted = [json.loads(line) for line in results.read_text().splitlines()]
    REPORT.write_text(report(noted, rows or list(ROWS), failed, seed))
    print(f"{REPORT.relative_to(ROOT)} is written; rows that failed: {failed or 'none'}")
    return int(bool(failed))


def _run_all(rows: list[str], seed: str, results: Path) -> list[str]:
    """Those that failed."""
    beside = [row for row in rows if row not in ALONE]
    with ThreadPoolExecutor(LANES) as lanes:
        passed = dict(zip(beside, lanes.map(lambda row: _run(row, seed, results), beside), strict=True))
    passed |= {row: _run(row, seed, results) for row in rows if row in ALONE}
    return [row for row in rows if not passed[row]]


def _run(row: str, seed: str, results: Path) -> bool:
    file, chosen, what = ROWS[row]
    began = time.monotonic()
    print(f"== {row}: {what}; SEED={seed}", flush=True)
    command = [sys.executable, "-m", "pytest", "-m", "faults", "-q", str(ROOT / "tests" / "faults" / file)]
    environment = {"FAULTS": "long"} | os.environ | {"SEED": seed, "FAULTS_RESULTS": str(results)}
    answer = subprocess.run(
        [*command, *(["-k", chosen] if chosen else [])],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(f"{answer.stdout}== {row}: {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    return answer.returncode == 0


def report(noted: list[dict[str, Any]], rows: list[str], failed: list[str], seed: str) -> str:
    """The figures, as Markdown."""
    lines = [
        "# What the fault tests found",
        "",
        f"Written by `make faults` on {datetime.date.today()} at commit {_commit()}, SEED={seed}. "
        "A row is repeated by `SEED=<seed> python tests/faults/report.py <row>`, one schedule of it by "
        "`SEED=<seed>-<row>-<number> make faults-ci`.",
        *(["", "These are parts of the long set, not all of it."] if _is_a_part(rows) else []),
        "",
        "After each schedule all invariants are looked at: one terminal state by allowed transitions, journals and "
        "stored lines, fencing, every subscriber's list, metrics and weights of the uninterrupted run, what is left "
        "behind, the database. With 0 violations in N schedules the chance of one is below 3/N (95 %, rule of three).",
        "",
        "| row | what | schedules | violations | bound | until all was well, median and longest |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_row(row, [one for one in noted if one["row"] == row], row in failed) for row in rows]
    lines += ["", *_gone(noted), *_kills(noted), *_recovery(noted), *_cancels(noted), *_told(noted), *_sizes(rows)]
    return "\n".join(lines).rstrip() + "\n"


def _row(row: str, noted: list[dict[str, Any]], has_failed: bool) -> str:
    what = ROWS[row][2]
    if row == "machine":
        stories = plan.SIZES[row][os.environ.get("FAULTS") != "ci"]
        verdict, bound = ("see the run", "–") if has_failed else ("0", f"3/{stories}")
        return f"| {row} | {what} | {stories} stories | {verdict} | {bound} | |"
    wrong = {one["seed"] for one in noted if one["violations"]}
    settled = sorted(one["settled_s"] for one in noted if "settled_s" in one)
    took = f"{settled[len(settled) // 2]:.1f} s, {settled[-1]:.1f} s" if settled else "–"
    bound = f"3/{len(noted)}" if noted and not wrong else "–"
    found = f"{len(wrong)}: {', '.join(sorted(wrong))}" if wrong else "0"
    if has_failed and not wrong:
        found = "the run failed"
    return f"| {row} | {what} | {len(noted)} | {found} | {bound} | {took} |"


def _gone(noted: list[dict[str, Any]]) -> list[str]:
    gone = sorted(one["gone_s"] for one in noted if "gone_s" in one)
    if not gone:
        return []
    return [
        f"Jobs that end more than {plan.RECOVERED_WITHIN_S:.0f} s after their schedule are a violation. From then on "
        f"it took {gone[len(gone) // 2]:.2f} s (median) and {gone[-1]:.1f} s (longest) until no process, lock or "
        f"half-made file was left that should be gone; more than {plan.GONE_WITHIN_S:.0f} s are a violation.",
        "",
    ]


def _kills(noted: list[dict[str, Any]]) -> list[str]:
    killed = [target for one in noted for target in one.get("killed", ())]
    seams = {name for one in noted for name in one.get("seams", ())}
    if not killed and not seams:
        return []
    by_target = ", ".join(f"{target} {killed.count(target)}" for target in sorted(set(killed)))
    return [f"Killed at random times: {by_target}. Seams passed: {len(seams)} different ones.", ""]


def _recovery(noted: list[dict[str, Any]]) -> list[str]:
    kills = sum(one.get("runner_kills", 0) for one in noted)
    noticed = sorted(value for one in noted for value in one.get("noticed_s", ()))
    stepped = sorted(value for one in noted for value in one.get("next_step_s", ()))
    if not noticed:
        return []
    late = sum(value > 20 for value in noticed) + sum(value > 30 for value in stepped)
    return [
        f"Lost runners, lease of 15 s, {kills} kills: noticed after {noticed[len(noticed) // 2]:.1f} s (median), "
        f"{noticed[-1]:.1f} s (longest); the job's next step after {stepped[len(stepped) // 2]:.1f} s and "
        f"{stepped[-1]:.1f} s. Aims: 20 s and 30 s; missed {late} times by {len(noticed)} interrupted jobs.",
        "",
    ]


def _cancels(noted: list[dict[str, Any]]) -> list[str]:
    count = sum(one.get("cancels", 0) for one in noted)
    in_phases = sum(one.get("in_phases", 0) for one in noted)
    slowest = max((one["slowest_s"] for one in noted if "slowest_s" in one), default=None)
    if slowest is None:
        return []
    return [
        f"Cancels: {count}, of which {in_phases} found a child in a chosen phase (loading, training, saving, at its "
        f"end), one third each of children that listen, ignore SIGTERM, and double-fork. The slowest was answered "
        f"after {slowest:.1f} s, with a grace of 2 s; at no answer was anything of the job alive.",
        "",
    ]


def _told(noted: list[dict[str, Any]]) -> list[str]:
    kills = sum(len(one["killed"]) for one in noted if one["row"] == "webhooks" and "killed" in one)
    if not kills:
        return []
    told, repeats = (sum(one.get(name, 0) for one in noted) for name in ("told", "repeats"))
    return [
        f"Webhooks: {told} events told over {kills} kills of the service; {repeats} came again under the `webhook-id` "
        "they had, none was lost, none came under two ids.",
        "",
    ]


def _sizes(rows: list[str]) -> list[str]:
    """What was run less often than was planned."""
    smaller = [
        f"{row} {plan.SIZES[row][1]:,} instead of {designed:,}"
        for row, designed in plan.DESIGNED.items()
        if row in rows and plan.SIZES[row][1] < designed
    ]
    return [f"Schedules, so that one run takes an hour on two cores: {', '.join(smaller)}."] if smaller else []


def _is_a_part(rows: list[str]) -> bool:
    return set(rows) != set(ROWS) or any(
        name == "FAULTS" or name.removeprefix("FAULTS_").lower() in ROWS for name in os.environ
    )


def _commit() -> str:
    answer = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return answer.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
