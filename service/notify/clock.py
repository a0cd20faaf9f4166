"""The time that deliveries go by: the wall's, because a next try must outlive a restart. Tests bring their own."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime

_LOOK_AGAIN_S = 60.0  # a host that slept, or whose clock was set, is noticed after this


class Clock:
    """Tells the time, and waits for it."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def wait(self, news: asyncio.Event, until: datetime | None) -> None:
        """Return when there is news, at `until`, or now and then."""
        pause_s = _LOOK_AGAIN_S if until is None else (until - self.now()).total_seconds()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(pause_s, _LOOK_AGAIN_S))):
                await news.wait()
