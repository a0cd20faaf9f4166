"""What an attempt takes over from those before it. The recipe finetune calls it first of all.

An earlier attempt may still be at work: a runner that was only out of reach lets it go on until it hears that nobody
wants it. So its checkpoints are moved out of its reach, and what it said on the way to them, but too late to be
recorded, is said again. No torch here.
"""

from itertools import islice
from typing import Any

from gpu_runner.training import checkpoints
from gpu_runner.training.checkpoints import Checkpoint, Manifest
from gpu_runner.work import Work
from jobs import events

_FACTS = (events.MetricsLogged, events.SamplePredicted, events.ArtifactCreated, events.JobNoted)


def take_over(work: Work[Any]) -> Checkpoint | None:
    """The checkpoint to go on from, now in this attempt's own folder; None when there is none. Says all of it."""
    if work.attempt == 1:
        return None
    taken = checkpoints.take_over(work.root, work.job_id, work.attempt)
    newest = taken[0] if taken else None
    if newest is not None:
        _repeat_unrecorded(work, newest.manifest)
    work.journal.resumed(newest.step if newest else 0)
    for checkpoint in reversed(taken):
        work.journal.checkpoint(checkpoint.step, checkpoint.folder, checkpoint.size_bytes, checkpoint.manifest.metrics)
    return newest


def _repeat_unrecorded(work: Work[Any], manifest: Manifest) -> None:
    """The lines a checkpoint rests on, beyond those that were recorded of its attempt."""
    recorded = dict(work.recorded).get(manifest.attempt)
    journal = work.root.attempt(work.job_id, manifest.attempt).journal
    if recorded is None or recorded >= manifest.lines or not journal.exists():
        return
    with journal.open("rb") as file:
        for line in islice(file, recorded, manifest.lines):
            event = events.decode_event(line)
            if isinstance(event, _FACTS):
                work.journal.repeat(event)
