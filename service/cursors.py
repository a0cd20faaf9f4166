"""What a listener says of itself, as parameters of routes: which events it has, and which types it wants.

Called by `routes/jobs` and `routes/live`.
"""

from typing import Annotated

from litestar.params import Parameter

LAST_SEQ = 2**63 - 1

After = Annotated[int, Parameter(ge=0, le=LAST_SEQ, description="Cursor: the last `seq` you have.")]
LastEventId = Annotated[int | None, Parameter(header="last-event-id", ge=0, le=LAST_SEQ)]
EventTypes = Annotated[
    str | None, Parameter(max_length=1000, description="Event types, comma-separated, such as job.started.")
]


def types_of(text: str | None) -> frozenset[str] | None:
    """The event types of a comma-separated list; None means all."""
    return frozenset(part.strip() for part in text.split(",") if part.strip()) or None if text else None
