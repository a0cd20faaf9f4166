"""Hidden folders in which an attempt makes what others shall see: a rename puts it in place when it is whole.

The recipes fill them. Where the child was killed the runner removes them with the attempt's end.
"""

import shutil
from pathlib import Path

from jobs.paths import DataRoot


def dataset(root: DataRoot, job_id: str, attempt: int) -> Path:
    return root.datasets / ".staging" / f"{job_id}.{attempt}"


class RootAhead(DataRoot):
    """A data root as it will be: what is still being made in `folder` is found under the name it shall have."""

    def __init__(self, root: DataRoot, name: str, folder: Path) -> None:
        super().__init__(root.folder)
        self._target, self._made = root.path_of(name), folder

    def path_of(self, name: str) -> Path:
        path = super().path_of(name)
        return self._made / path.relative_to(self._target) if path.is_relative_to(self._target) else path

    def name_of(self, path: Path) -> str:
        is_made = path.is_relative_to(self._made)
        return super().name_of(self._target / path.relative_to(self._made) if is_made else path)


def export(root: DataRoot, job_id: str, attempt: int) -> Path:
    return root.exports / f".{job_id}.{attempt}"


def remove(root: DataRoot, job_id: str, attempt: int) -> None:
    """What this attempt and earlier ones left; a later one may be at work at another runner."""
    for number in range(1, attempt + 1):
        for folder in (dataset(root, job_id, number), export(root, job_id, number)):
            shutil.rmtree(folder, ignore_errors=True)
