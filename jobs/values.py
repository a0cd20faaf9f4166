"""The plain values that specs are made of, each with its limits, and what both sides know of a row."""

from collections.abc import Iterable
from typing import Annotated, Literal

from msgspec import Meta, Struct

ClientPath = Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"\S", description="Name below the data root.")]
ModelName = Annotated[
    str, Meta(min_length=1, max_length=512, pattern=r"\S", description="Registry name, local folder or hub repository.")
]
Tag = Annotated[str, Meta(min_length=1, max_length=100)]
Title = Annotated[str, Meta(min_length=1, max_length=200)]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
JobId = Annotated[str, Meta(min_length=1, max_length=64)]
WantedDevice = Literal["auto", "cpu", "cuda"]

MAX_LENGTH_LIMIT = 32768
MAX_PICTURE_BYTES = 64 * 2**20  # of an encoded picture that is converted, trained on or shown


def named_together(device_ids: Iterable[str]) -> str:
    """The devices of one job as one name: `cuda:0,cuda:1`."""
    return ",".join(device_ids)


def devices_of(name: str) -> tuple[str, ...]:
    """The devices that a job's device names; none of an empty name."""
    return tuple(name.split(",")) if name else ()


class OnlyId(Struct, frozen=True):
    """Of a line of rows, in whichever format, its id alone."""

    id: str
