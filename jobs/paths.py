"""Every path on disk, and the one door for paths that clients send.

    <data root>/
      training.db, training.db.lock (unless TRAINING_DATABASE names another file)
      service.lock   programs.lock   export_links.key   redis/   .trash/
      uploads/<id>/<file>.zip
      datasets/<name>/   fingerprints/<sha256>.bin
      models/<name>/
      jobs/<job>/attempt-<n>/{start.json, events.jsonl, ballast, output.log, checkpoints/step-<k>/}
      exports/<export>/{model/, <file>.zip}
      runners/<runner>/<job>.<attempt>.lock

A client's path is a *name*: relative to the data root, or absolute below it. A name that does not begin with
one of our folders is a dataset's: `contract/llava` means `datasets/contract/llava`, in every route alike.
"""

import os
import re
import stat
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from jobs.errors import FileMissing, PathNotAllowed

# Files in the folder of a dataset, or of the parts of one.
LLAVA_FILE = "llava_dataset.jsonl"
COCO_FILE = "instances.json"
ARROW_STATE = "state.json"
ARROW_LINES = "rows.jsonl"  # the rows of an Arrow table, for programs that cannot read one
MANIFEST = "manifest.json"
DIGESTS = "SHA256SUMS"  # as `sha256sum -c` reads it
LEFT_OUT = "left_out.jsonl"
SPLIT_CONFIG = "split_config.json"

CLIENT_FOLDERS = ("uploads", "datasets", "models", "jobs", "exports")  # a name may begin with one of these
_LONGEST_NAME = 1024  # bytes of a whole name: with the root before it, below what the kernel takes
_LONGEST_PART = 255  # bytes of one component: what common file systems take
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # Unicode categories
_ESCAPED = re.compile(r"%[0-9a-f]{2}", re.IGNORECASE)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # not portable to Windows shares


class DataRoot:
    """The folder below which everything lives. Names are text relative to it, always with `/`."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).resolve()

    # -- our own folders

    @property
    def database(self) -> Path:
        return self.folder / "training.db"

    @property
    def service_lock(self) -> Path:
        return self.folder / "service.lock"

    @property
    def programs_lock(self) -> Path:
        return self.folder / "programs.lock"

    @property
    def link_key(self) -> Path:
        """What download links with an end are signed with."""
        return self.folder / "export_links.key"

    @property
    def redis(self) -> Path:
        return self.folder / "redis"

    @property
    def uploads(self) -> Path:
        return self.folder / "uploads"

    @property
    def datasets(self) -> Path:
        return self.folder / "datasets"

    def fingerprints(self, sha256: str) -> Path:
        """What the pictures of a file of rows look like; the file is known by its SHA-256."""
        return self.folder / "fingerprints" / f"{sha256}.bin"

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def jobs(self) -> Path:
        return self.folder / "jobs"

    @property
    def exports(self) -> Path:
        return self.folder / "exports"

    @property
    def trash(self) -> Path:
        return self.folder / ".trash"

    def runner(self, runner_id: str) -> Path:
        return self.folder / "runners" / runner_id

    def job(self, job_id: str) -> Path:
        return self.jobs / job_id

    def attempt(self, job_id: str, attempt: int) -> "AttemptFolder":
        return AttemptFolder(self.job(job_id) / f"attempt-{attempt}")

    def attempts(self, job_id: str) -> list["AttemptFolder"]:
        """The folders of all attempts so far, newest first."""
        numbered = []
        for folder in self.job(job_id).glob("attempt-*"):
            number = folder.name.removeprefix("attempt-")
            if number.isdigit():
                numbered.append((int(number), folder))
        return [AttemptFolder(folder) for _, folder in sorted(numbered, reverse=True)]

    def export(self, export_id: str) -> Path:
        return self.exports / export_id

    # -- names

    def name_of(self, path: Path) -> str:
        """The name of one of our own paths, as clients get to see it."""
        return path.relative_to(self.folder).as_posix()

    def path_of(self, name: str) -> Path:
        """The path of a name that `confine` gave."""
        return self.folder / name

    def confine(self, text: str) -> str:
        """The normalised name of a client's path. Says nothing about whether anything is there.

        Raises:
            PathNotAllowed: it leaves the root, hides something, or meets a link on its way.
        """
        if text.startswith("/"):
            root = f"{self.folder}/"
            if not text.startswith(root):
                raise PathNotAllowed
            text = text.removeprefix(root)
        parts = [part for part in text.split("/") if part not in ("", ".")]
        if not parts or len(text.encode("utf-8", "replace")) > _LONGEST_NAME or not all(map(is_plain, parts)):
            raise PathNotAllowed
        if parts[0] not in CLIENT_FOLDERS:
            parts.insert(0, "datasets")
        if len(parts) == 1:  # a whole folder of ours is nobody's dataset or output
            raise PathNotAllowed
        self._refuse_links(parts)
        return "/".join(parts)

    def confine_existing(self, text: str) -> str:
        """Like `confine`, for a path that must be there: a regular file or a folder.

        Raises:
            PathNotAllowed: as `confine`, or it is a device, pipe, socket or hard link.
            FileMissing: nothing is there.
        """
        name = self.confine(text)
        try:
            found = os.lstat(f"{self.folder}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            raise FileMissing(f"{name!r} does not exist below the data root.") from None
        is_file = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
        if not (is_file or stat.S_ISDIR(found.st_mode)):
            raise PathNotAllowed
        return name

    def open(self, text: str) -> BinaryIO:
        """The file of a client's path, for reading. No folder on the way can be swapped for a link meanwhile.

        Raises:
            PathNotAllowed, FileMissing: as `confine_existing`; a folder is not allowed either.
        """
        name = self.confine_existing(text)
        try:
            file = os.fdopen(self._open_beneath(name.split("/")), "rb")
        except FileNotFoundError:
            raise FileMissing(f"{name!r} does not exist below the data root.") from None
        except OSError:  # a link by now (ELOOP), a folder (EISDIR), or not ours to read
            raise PathNotAllowed from None
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            file.close()
            raise PathNotAllowed
        return file

    def _open_beneath(self, parts: list[str]) -> int:
        """A descriptor, reached from the root folder by folder. A pipe opens at once, without a writer."""
        here = os.open(self.folder, _FOLDER)
        try:
            for part in parts[:-1]:
                below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
                os.close(here)
                here = below
            return os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
        finally:
            os.close(here)

    def _refuse_links(self, parts: list[str]) -> None:
        path = str(self.folder)  # text: a Path costs more than the look at the disk
        for part in parts:
            path = f"{path}/{part}"
            try:
                if stat.S_ISLNK(os.lstat(path).st_mode):
                    raise PathNotAllowed
            except (FileNotFoundError, NotADirectoryError):
                return


class AttemptFolder:
    """The files of one attempt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def number(self) -> int:
        return int(self.folder.name.removeprefix("attempt-"))

    @property
    def start(self) -> Path:
        """The command that began it: spec, attempt and device."""
        return self.folder / "start.json"

    @property
    def journal(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def ballast(self) -> Path:
        """Room for the journal's last line; nothing is in it."""
        return self.folder / "ballast"

    @property
    def log(self) -> Path:
        """What the child printed."""
        return self.folder / "output.log"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """A training's curves as TensorBoard reads them."""
        return self.folder / "tensorboard"

    @property
    def report(self) -> Path:
        """A validation's report, for people."""
        return self.folder / "report.md"

    @property
    def report_data(self) -> Path:
        """A validation's report, for programs."""
        return self.folder / "report.json"


@lru_cache(4096)  # clients name the same folders again and again
def is_plain(part: str) -> bool:
    """Whether a component, which is not empty, may be part of a client's path."""
    return (
        part != ".."
        and len(part.encode("utf-8", "replace")) <= _LONGEST_PART
        and part[0] not in "~$"
        and part[-1] not in ". "
        and not any(character in '\\:*?"<>|' for character in part)
        and not any(unicodedata.category(character) in _UNPRINTABLE for character in part)
        and not _ESCAPED.search(part)
        and not _DEVICE.fullmatch(part)
    )
