"""When a delivery that failed is tried again, and when a webhook is given up. Pure; used by `courier`.

Source of the pauses: the schedule that Standard Webhooks recommends.
"""

import random
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

DELAYS_S = (0.0, 5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Pause before the first try, the second, and so on; after the last one a delivery is given up."""
JITTER = 0.2
LONGEST_RETRY_AFTER = timedelta(days=1)
DISABLED_AFTER = timedelta(days=5)
_SERIES_ENDS_AFTER = timedelta(seconds=DELAYS_S[-1] * (1 + JITTER)) + timedelta(hours=1)


def next_try(now: datetime, tries: int, retry_after: str | None = None) -> datetime | None:
    """When to try again after so many tries; None is never. A receiver may ask for more patience, up to a day."""
    if tries >= len(DELAYS_S):
        return None
    pause = timedelta(seconds=DELAYS_S[tries] * random.uniform(1 - JITTER, 1 + JITTER))
    return now + max(pause, min(_asked(retry_after, now), LONGEST_RETRY_AFTER))


def failing_since(now: datetime, since: datetime | None, last: datetime | None) -> datetime:
    """The begin of the series that a failure now belongs to. Where nothing was tried for longer than the schedule
    pauses, nothing failed either: that is another series."""
    return now if since is None or last is None or now - last > _SERIES_ENDS_AFTER else since


def is_hopeless(now: datetime, since: datetime) -> bool:
    """Whether a series of failures has lasted so long that nobody seems to listen any more."""
    return now - since >= DISABLED_AFTER


def _asked(retry_after: str | None, now: datetime) -> timedelta:
    """What a header says, in seconds or as a date; nothing, if it says neither."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return timedelta(seconds=min(int(text[:12]), LONGEST_RETRY_AFTER.total_seconds()))
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return timedelta(0)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)) - now
