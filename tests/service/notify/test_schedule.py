"""Pauses, patience that receivers ask for, and the end of patience."""

from datetime import UTC, datetime, timedelta

import pytest

from service.notify import schedule

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def test_the_pauses_are_those_of_the_standard_within_a_fifth() -> None:
    hours = 3600
    wanted = [0, 5, 300, 1800, 2 * hours, 5 * hours, 10 * hours, 14 * hours, 20 * hours, 24 * hours]
    for tries, pause in enumerate(wanted):
        tried = [(schedule.next_try(NOW, tries) - NOW).total_seconds() for _ in range(200)]
        assert all(0.8 * pause <= each <= 1.2 * pause for each in tried)
        assert pause == 0 or max(tried) - min(tried) > 0.2 * pause
    assert schedule.next_try(NOW, len(wanted)) is None


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("120", 120), (" 120 ", 120), ("Thu, 01 Jan 2026 12:02:00 GMT", 120), ("Thu, 01 Jan 2026 12:02:00", 120),
        ("9" * 400, 86400), ("Thu, 01 Jan 2099 12:00:00 GMT", 86400),
    ],
)  # fmt: skip
def test_a_receiver_may_ask_for_more_patience_up_to_a_day(asked, seconds) -> None:
    assert schedule.next_try(NOW, 1, asked) == NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "asked", ["", "0", "1", "-5", "soon", "1.5", "٣", "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 99", None]
)
def test_what_asks_for_less_or_for_nothing_changes_nothing(asked) -> None:
    assert timedelta(seconds=4) <= schedule.next_try(NOW, 1, asked) - NOW <= timedelta(seconds=6)


def test_five_days_of_failures_without_a_success_are_hopeless() -> None:
    since = last = NOW
    for day in range(1, 6):
        assert not schedule.is_hopeless(NOW + day * DAY - timedelta(seconds=1), since)
        since = schedule.failing_since(NOW + day * DAY, since, last)
        last = NOW + day * DAY
    assert since == NOW
    assert schedule.is_hopeless(NOW + 5 * DAY, since)


def test_where_nothing_was_tried_for_long_another_series_begins() -> None:
    assert schedule.failing_since(NOW, None, None) == NOW
    assert schedule.failing_since(NOW + 1.2 * DAY, NOW, NOW) == NOW
    assert schedule.failing_since(NOW + 2 * DAY, NOW, NOW) == NOW + 2 * DAY
