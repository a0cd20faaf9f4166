"""Ending background tasks for certain. Used by whatever awaits Redis: recorder, reconciler, runner."""

import asyncio
from typing import Any

_AGAIN_AFTER_S = 0.05


async def end(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks until they are done.

    Once is not enough: on Python 3.11 `asyncio.wait_for`, which redis-py sends with, swallows a cancellation that
    meets its result (cpython issue 86296), and the task's loop goes on.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN_AFTER_S)
