"""What a client of server-sent events makes of the lines it reads."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Said(NamedTuple):
    """One event, or the comment that says that the stream is fresh. `seq` is its own `id`, None where it has none."""

    seq: int | None = None
    kind: str = ""
    data: str = ""
    is_comment: bool = False


def said(lines: Iterable[str]) -> Iterator[Said]:
    """The events of a stream; one that was cut off before its empty line is none. One without data only has a `seq`."""
    event = Said()
    for line in lines:
        name, _, value = line.partition(": ")
        if line.startswith(":"):
            yield Said(is_comment=True)
        elif name == "id":
            event = event._replace(seq=int(value))
        elif name == "event":
            event = event._replace(kind=value)
        elif name == "data":
            event = event._replace(data=value)
        elif not line:
            if event != Said():
                yield event
            event = Said()
