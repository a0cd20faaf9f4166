"""Wishes of the service to one runner. Duplicates are harmless: the service repeats a wish until a report shows
that it is fulfilled, and a runner ignores what is already so."""

import msgspec

from jobs.specs import JobSpec


class Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="command"):
    """All commands are about one attempt of one job."""

    job_id: str
    attempt: int


class Start(Command, frozen=True, kw_only=True, tag="start"):
    """Run this attempt on this device, or on these: `cuda:0,cuda:1`. Ignored for an attempt the runner holds or has
    finished.

    `recorded` is how many journal lines of each earlier attempt are recorded, as (attempt, lines): an earlier one may
    have said more, and nobody will hear it.
    """

    spec: JobSpec
    device: str
    recorded: tuple[tuple[int, int], ...] = ()


class Cancel(Command, frozen=True, kw_only=True, tag="cancel"):
    """This attempt is not wanted: end it; if it is finished, stop reporting it."""


class Pause(Command, frozen=True, kw_only=True, tag="pause"):
    """Save the state at the next step and give the device back."""


class Resend(Command, frozen=True, kw_only=True, tag="resend"):
    """Publish the journal again from line `from_n` on."""

    from_n: int


AnyCommand = Start | Cancel | Pause | Resend

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(AnyCommand).decode
