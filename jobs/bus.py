"""Redis streams: the only place that reads or writes them. Transport that may be wiped at any time.

The service reads `training:events` from the position it stored; a runner reads its commands from now on, because
whatever was sent before its first report is repeated by reconciling.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Sequence
from typing import Any

import msgspec
import structlog
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from jobs import commands, keys
from jobs.commands import AnyCommand

log = structlog.get_logger()

BEGINNING = "0-0"
_COMMANDS_KEPT = 10_000  # commands are repeated until fulfilled, so trimming loses nothing
_ANSWER_WITHIN_S = 2.0  # also of a server that hangs, whatever the client would still try
UNREACHABLE = (exceptions.RedisError, OSError, asyncio.TimeoutError)
"""What every method raises while Redis is away."""


def connect(url: str) -> "Bus":
    """A bus on a Redis address; nothing is sent yet. Commands fail after a short retry, callers repeat them."""
    redis = Redis.from_url(
        url,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 3),
        retry_on_error=[exceptions.ConnectionError, exceptions.TimeoutError, exceptions.BusyLoadingError, OSError],
        socket_connect_timeout=3,
        socket_timeout=10,
        health_check_interval=15,
    )
    return Bus(redis)


class Bus:
    """Publish and read events; send and read commands."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def close(self) -> None:
        await self._redis.aclose()

    async def is_reachable(self) -> bool:
        try:
            async with asyncio.timeout(1):
                return bool(await self._redis.ping())
        except UNREACHABLE:
            return False

    # -- events

    async def publish(self, messages: Sequence[bytes]) -> None:
        """Append encoded events or reports, in order, in one round trip."""
        pipeline = self._redis.pipeline(transaction=False)
        for message in messages:
            pipeline.xadd(keys.EVENTS, {keys.FIELD: message})
        await _in_time(pipeline.execute())

    async def read_events(self, after: str, *, count: int = 500, block_s: float = 1.0) -> list[tuple[str, bytes]]:
        """(stream id, message) of what came after a position, oldest first; empty when nothing came in time.

        An entry without our field comes back as an empty message: the caller dead-letters it and goes on.
        """
        answer = await self._read(keys.EVENTS, after, count, block_s)
        return [
            (_text(entry_id), fields.get(keys.FIELD.encode(), b"")) for _, rows in answer for entry_id, fields in rows
        ]

    async def epoch(self) -> str:
        """The word of this incarnation of the stream; another one means that positions are void."""
        await _in_time(self._redis.set(keys.EPOCH, secrets.token_hex(8), nx=True))
        word: bytes | None = await _in_time(self._redis.get(keys.EPOCH))
        if word is None:
            raise exceptions.ConnectionError("the stream's epoch vanished while it was read")
        return word.decode()

    async def clock_s(self) -> float:
        """What the server's clock says, which is the clock of the stream's ids; see `said_at_s`."""
        seconds, microseconds = await _in_time(self._redis.time())
        return float(seconds + microseconds / 1e6)

    async def forget_events(self, recorded: str) -> None:
        """Trim the event stream up to and including a recorded position, never what was not read."""
        milliseconds, _, counter = recorded.partition("-")
        behind = f"{milliseconds}-{int(counter or 0) + 1}"
        await _in_time(self._redis.xtrim(keys.EVENTS, minid=behind, approximate=False))

    # -- commands

    async def send(self, runner_id: str, wishes: Sequence[AnyCommand]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for wish in wishes:
            fields: Any = {keys.FIELD: commands.encode(wish)}
            pipeline.xadd(keys.commands(runner_id), fields, maxlen=_COMMANDS_KEPT, approximate=True)
        await _in_time(pipeline.execute())

    async def commands_end(self, runner_id: str) -> str:
        """The position behind the last command, where a starting runner begins to read."""
        last = await _in_time(self._redis.xrevrange(keys.commands(runner_id), count=1))
        return _text(last[0][0]) if last else BEGINNING

    async def read_commands(self, runner_id: str, after: str, *, block_s: float = 1.0) -> tuple[str, list[AnyCommand]]:
        """The new position and the commands behind `after`; one that cannot be decoded is logged and skipped."""
        answer = await self._read(keys.commands(runner_id), after, 100, block_s)
        wishes: list[AnyCommand] = []
        for _, rows in answer:
            for entry_id, fields in rows:
                after = _text(entry_id)
                try:
                    wishes.append(commands.decode(fields.get(keys.FIELD.encode(), b"")))
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                    log.warning("command.undecodable", entry=after, error=str(error))
        return after, wishes

    async def _read(self, stream: str, after: str, count: int, block_s: float) -> Any:
        reading = self._redis.xread({stream: after}, count=count, block=max(1, int(block_s * 1000)))
        return await _in_time(reading, block_s)


def said_at_s(entry_id: str) -> float:
    """When an entry of a stream was added, on the server's clock."""
    return int(entry_id.partition("-")[0]) / 1000


async def _in_time(answer: Awaitable[Any], block_s: float = 0.0) -> Any:
    """The server's answer. Raises TimeoutError without one."""
    async with asyncio.timeout(block_s + _ANSWER_WITHIN_S):
        return await answer


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
