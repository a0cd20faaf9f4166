"""The points of a frame in columns, and the columns as events again: a third of the bytes, and no point less.

The service merges (`service/hub.py`), its clients unfold (`subscription`; `static/live.js` does the same).
"""

from collections.abc import Iterable, Sequence

import msgspec

from jobs import events
from jobs.events import MetricsLogged
from jobs.frames import Events, Numbered, Points

POINT = "metrics.logged"

_decode = msgspec.json.Decoder(MetricsLogged).decode

Row = tuple[int, MetricsLogged]
"""A point and its `seq`."""


def merge(numbered: Iterable[tuple[Numbered, str]]) -> tuple[tuple[Numbered, ...], tuple[Points, ...]]:
    """What stays by itself, and the points in columns, of events beside their types.

    Points share columns where attempt and names are the same; one that is alone in that stays as it is.
    """
    everything = [(one, _point(one, kind)) for one, kind in numbered]
    blocks: dict[object, list[Row]] = {}
    for one, point in everything:
        if point is not None and one.seq is not None:
            blocks.setdefault(_block(point), []).append((one.seq, point))
    full = {name: rows for name, rows in blocks.items() if len(rows) > 1}
    single = tuple(one for one, point in everything if point is None or _block(point) not in full)
    return single, tuple(_columns(rows) for rows in full.values())


def unfold(frame: Events) -> Sequence[Numbered]:
    """The events of a frame one by one, in the order of `seq`."""
    if not frame.points:
        return frame.events
    rows = sorted((row for points in frame.points for row in _rows(points)), key=lambda row: row[0], reverse=True)
    unfolded: list[Numbered] = []

    def points_up_to(seq: int | None) -> None:
        while rows and (seq is None or rows[-1][0] < seq):
            number, point = rows.pop()
            unfolded.append(Numbered(seq=number, event=msgspec.Raw(events.encode(point))))

    limits: list[int | None] = []  # of each event the seq before which it stands
    limit: int | None = None
    for one in reversed(frame.events):
        limit = limit if one.seq is None else one.seq
        limits.append(limit)
    for one, before in zip(frame.events, reversed(limits), strict=True):
        points_up_to(before)
        unfolded.append(one)
    points_up_to(None)
    return unfolded


def _point(one: Numbered, kind: str) -> MetricsLogged | None:
    """A point that fits into columns."""
    if kind != POINT or one.seq is None:
        return None
    try:
        point = _decode(one.event)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return None if point.n is None or point.not_finite else point


def _block(point: MetricsLogged) -> object:
    """What all points of the same columns share."""
    has_epoch = point.epoch is not None
    return point.job_id, point.attempt, point.total_steps, point.total_epochs, has_epoch, tuple(point.values)


def _columns(rows: Sequence[Row]) -> Points:
    first = rows[0][1]
    return Points(
        job_id=first.job_id,
        attempt=first.attempt,
        seq=tuple(seq for seq, _ in rows),
        n=tuple(point.n or 0 for _, point in rows),
        at=tuple(point.at for _, point in rows),
        step=tuple(point.step for _, point in rows),
        values={name: tuple(point.values[name] for _, point in rows) for name in first.values},
        epoch=tuple(point.epoch for _, point in rows if point.epoch is not None),
        total_steps=first.total_steps,
        total_epochs=first.total_epochs,
    )


def _rows(points: Points) -> Iterable[Row]:
    for i, seq in enumerate(points.seq):
        yield (
            seq,
            MetricsLogged(
                job_id=points.job_id,
                attempt=points.attempt,
                n=points.n[i],
                at=points.at[i],
                step=points.step[i],
                values={name: column[i] for name, column in points.values.items()},
                epoch=points.epoch[i] if points.epoch else None,
                total_steps=points.total_steps,
                total_epochs=points.total_epochs,
            ),
        )
