"""Hidden folders in which an attempt makes what others shall see: a rename puts it in place when it is whole.

The recipes fill them. Where the child was killed the runner removes them with the attempt's end.
"""

import shutil
from pathlib import Path

from jobs.paths import DataRoot


def dataset(root: DataRoot, job_id: str, attempt: int) -> Path:
    return root.datasets / ".staging" / f"{job_id}.{attempt}"


def export(root: DataRoot, job_id: str, attempt: int) -> Path:
    return root.exports / f".{job_id}.{attempt}"


def remove(root: DataRoot, job_id: str, attempt: int) -> None:
    """What this attempt and earlier ones left; a later one may be at work at another runner."""
    for number in range(1, attempt + 1):
        for folder in (dataset(root, job_id, number), export(root, job_id, number)):
            shutil.rmtree(folder, ignore_errors=True)
