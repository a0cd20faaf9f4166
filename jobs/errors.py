"""Every error a user can meet, as one tree. The class docstring is the default message; `code` never changes.

    TrainingError
    ├── Refused                     the request itself is wrong: nothing was recorded
    │   ├── InvalidInput            a value is outside its limits
    │   │   └── AddressNotAllowed   an address that the service does not call
    │   ├── BadRatios               split ratios that do not add up to 1
    │   ├── PathNotAllowed          a path leaves the data root
    │   ├── FileMissing             a path below the data root that has no file
    │   ├── NotAnArchive            an upload that is no ZIP file
    │   ├── TooLarge                an upload beyond its limit
    │   ├── Conflict                the request does not fit what is there
    │   ├── UnknownJob / UnknownExport / UnknownReport / UnknownDataset / UnknownWebhook / UnknownDelivery
    │   ├── WrongState              the job's status forbids it
    │   ├── LinkExpired             an export link beyond its time
    │   └── NotSupported            asked for something this version does not build
    ├── Unavailable                 right, but not now: try again
    │   └── NoRunner
    ├── JobFailed                   a recipe ends its job; `reason` is one of `FailureReason`
    │   ├── DatasetInvalid, OutputTaken, ModelUnavailable, OutOfMemory, DiskFull, NoCapacity
    ├── RemoteProblem, Unreachable, NotCompleted    what a client of the API meets
    └── Misconfigured               a program refuses to start

`service/problems.py` maps them to HTTP, the child maps `JobFailed` to the event `job.failed`.
"""

import errno
from enum import StrEnum
from typing import Any


class FailureReason(StrEnum):
    """Why a job failed: a closed set, each member with one meaning."""

    OUT_OF_MEMORY = "out_of_memory"  # the device or the host had no memory left
    DATASET_INVALID = "dataset_invalid"  # the input data cannot be used; the detail names rows and remedy
    CONFLICT = "conflict"  # the folder the result should go to holds something that is not the job's to replace
    MODEL_UNAVAILABLE = "model_unavailable"  # the model cannot be had or loaded on this host
    DISK_FULL = "disk_full"  # no space left below the data root
    NO_CAPACITY = "no_capacity"  # no device of any runner can ever take the job
    TIMED_OUT = "timed_out"  # the job made no progress for too long
    TOO_MANY_ATTEMPTS = "too_many_attempts"  # interrupted again and again
    INTERNAL = "internal"  # a fault of ours; the job's output.log has the traceback


class TrainingError(Exception):
    """Something went wrong."""

    code = "error"

    def __init__(self, message: str | None = None) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        super().__init__(self.message)


class Refused(TrainingError):
    """The request was refused."""

    code = "refused"


class InvalidInput(Refused):
    """The request has a value that cannot be used."""

    code = "validation_error"

    def __init__(self, message: str | None = None, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class AddressNotAllowed(InvalidInput):
    """The service does not call this address."""

    code = "address_not_allowed"


class BadRatios(Refused):
    """The split ratios must add up to 1."""

    code = "bad_ratios"


class PathNotAllowed(Refused):
    """The path is not allowed: give a name below the data root, without '..', links or special characters."""

    code = "path_not_allowed"


class FileMissing(Refused):
    """There is no file of that name below the data root."""

    code = "file_not_found"


class NotAnArchive(Refused):
    """The upload is not a ZIP archive: export it from the annotation tool as .zip and send it again."""

    code = "not_a_zip"


class TooLarge(Refused):
    """The upload is larger than this service accepts."""

    code = "too_large"


class Conflict(Refused):
    """The request conflicts with what is there."""

    code = "conflict"


class UnknownJob(Refused):
    """There is no job with that id."""

    code = "job_not_found"


class UnknownExport(Refused):
    """There is no export with that id."""

    code = "export_not_found"


class UnknownReport(Refused):
    """There is no validation report with that id."""

    code = "report_not_found"


class UnknownDataset(Refused):
    """There is no dataset of that name."""

    code = "dataset_not_found"


class UnknownWebhook(Refused):
    """There is no webhook with that id."""

    code = "webhook_not_found"


class UnknownDelivery(Refused):
    """This webhook has no delivery with that id."""

    code = "delivery_not_found"


class WrongState(Refused):
    """The job's status does not allow this."""

    code = "wrong_state"


class LinkExpired(Refused):
    """The download link has expired: ask for a new one at /api/export/{job_id}/download."""

    code = "link_expired"


class NotSupported(Refused):
    """This version cannot do that."""

    code = "not_supported"


class Unavailable(TrainingError):
    """The service cannot do this right now; try again in a moment."""

    code = "unavailable"


class NoRunner(Unavailable):
    """No runner is connected that can take this work.

    Start one with `training-api runner`, or send `Prefer: respond-async` to queue the work.
    """

    code = "no_runner"


class JobFailed(TrainingError):
    """The job failed."""

    code = "job_failed"
    reason = FailureReason.INTERNAL


class DatasetInvalid(JobFailed):
    """The dataset cannot be used."""

    reason = FailureReason.DATASET_INVALID


class OutputTaken(JobFailed):
    """The output folder holds something else: choose another output_dir."""

    reason = FailureReason.CONFLICT


class ModelUnavailable(JobFailed):
    """The model cannot be loaded."""

    reason = FailureReason.MODEL_UNAVAILABLE


class OutOfMemory(JobFailed):
    """The device ran out of memory: use a smaller batch_size or max_length, or use_qlora."""

    reason = FailureReason.OUT_OF_MEMORY


class DiskFull(JobFailed):
    """No space is left below the data root: free some, then start the job again."""

    reason = FailureReason.DISK_FULL


class NoCapacity(JobFailed):
    """No device of this runner can take the job."""

    reason = FailureReason.NO_CAPACITY


class Misconfigured(TrainingError):
    """The settings do not allow this program to start."""

    code = "misconfigured"


class RemoteProblem(TrainingError):
    """The service answered with an error; `status` is its HTTP status."""

    def __init__(self, message: str, *, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Unreachable(TrainingError):
    """No service answers."""

    code = "unreachable"


class NotCompleted(TrainingError):
    """A job ended without its result; `job` is all that is known of it."""

    code = "not_completed"

    def __init__(self, job: dict[str, Any]) -> None:
        ended = "was cancelled" if job["status"] == "cancelled" else str(job["status"])
        reason = f": {job['failure_detail']}" if job.get("failure_detail") else "."
        super().__init__(f"The {job['kind']} job {job['job_id']} {ended}{reason}")
        self.job = job


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: a limit on the size of files


def is_disk_full(error: BaseException | None) -> bool:
    """Whether no space left on the disk is behind an error.

    torch.save hides the system's error behind a RuntimeError, safetensors tells its number in words.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            return True
        if any(f"(os error {number})" in str(error) for number in _DISK_FULL):
            return True
        error = error.__context__
    return False
