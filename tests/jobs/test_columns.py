"""Points in columns and back: no point less, none changed, all in their order."""

from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from jobs import columns, events
from jobs.events import JobNoted, JobProgressed, MetricsLogged
from jobs.frames import Events, Numbered

AT = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = st.sampled_from(["train_loss", "eval_loss", "grad_norm"])
VALUES = st.dictionaries(NAMES, st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=3)
NOT_FINITE = st.sampled_from([{}, {}, {}, {"train_loss": "nan"}])
MAYBE = st.none() | st.integers(1, 3)


@st.composite
def _said(draw) -> list[Numbered]:
    """Events of two jobs and two attempts in the order of `seq`, with progress between them."""
    told: list[Numbered] = []
    for seq in range(1, draw(st.integers(1, 25))):
        about = {"job_id": draw(st.sampled_from("ab")), "attempt": draw(st.integers(1, 2))}
        about |= {"at": AT + timedelta(seconds=seq)}
        match draw(st.sampled_from(["point", "point", "point", "note", "progress"])):
            case "note":
                said = JobNoted(message="so it is", n=seq, **about)
            case "progress":
                progress = JobProgressed(step=seq, total_steps=99, fraction=seq / 99, **about)
                told.append(Numbered(event=msgspec.Raw(events.encode(progress))))
                continue
            case _:
                epoch = draw(st.none() | st.floats(0, 9))
                n, total, not_finite = draw(st.none() | st.just(seq)), draw(MAYBE), draw(NOT_FINITE)
                more = {"n": n, "total_steps": total, "epoch": epoch, "not_finite": not_finite}
                said = MetricsLogged(step=seq, values=draw(VALUES), **more, **about)
        told.append(Numbered(seq=seq, event=msgspec.Raw(events.encode(said))))
    return told


@given(_said())
def test_what_was_merged_unfolds_to_the_same_events_in_the_same_order(told) -> None:
    single, points = columns.merge((one, msgspec.json.decode(one.event)["type"]) for one in told)
    frame = Events(events=single, points=points, from_seq=0, to_seq=99)
    unfolded = columns.unfold(msgspec.json.decode(msgspec.json.encode(frame), type=Events))
    numbered = [(one.seq, bytes(one.event)) for one in unfolded if one.seq is not None]
    assert numbered == [(one.seq, bytes(one.event)) for one in told if one.seq is not None]
    assert [one.event for one in unfolded if one.seq is None] == [one.event for one in told if one.seq is None]


@given(_said())
def test_progress_stays_before_the_state_that_follows_it(told) -> None:
    single, points = columns.merge((one, msgspec.json.decode(one.event)["type"]) for one in told)
    places: list[object] = [
        one.seq if one.seq is not None else bytes(one.event)
        for one in columns.unfold(Events(events=single, points=points, from_seq=0, to_seq=99))
    ]
    unmerged = [one for one in single if one.seq is not None]
    for index, one in enumerate(single):
        if one.seq is None:
            following = next((later.seq for later in single[index:] if later.seq is not None), None)
            assert following is None or places.index(bytes(one.event)) < places.index(following)
    assert len(unmerged) + sum(len(block.seq) for block in points) == sum(one.seq is not None for one in told)


def test_points_that_share_their_names_share_columns_and_a_single_one_stays_as_it_is() -> None:
    def point(step: int, **values: float) -> tuple[Numbered, str]:
        said = MetricsLogged(job_id="a", attempt=1, at=AT, n=step, step=step, values=values)
        return Numbered(seq=step, event=msgspec.Raw(events.encode(said))), "metrics.logged"

    train = [point(step, train_loss=1 / step) for step in (1, 2, 4)]
    single, (block,) = columns.merge([*train[:2], point(3, eval_loss=0.5), train[2]])
    assert [one.seq for one in single] == [3]
    assert (block.seq, block.step, block.values) == ((1, 2, 4), (1, 2, 4), {"train_loss": (1.0, 0.5, 0.25)})
