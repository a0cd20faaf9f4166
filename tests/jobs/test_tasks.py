"""Ending tasks that do not want to end."""

import asyncio

from jobs import tasks


async def test_a_task_that_swallows_a_cancellation_is_ended_all_the_same():
    swallowed = []

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if len(swallowed) == 2:
                    raise
                swallowed.append(1)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await tasks.end(task)
    assert task.cancelled()
    assert len(swallowed) == 2


async def test_tasks_that_are_done_are_no_matter():
    async def fails() -> None:
        raise ValueError

    failed = asyncio.create_task(fails())
    await asyncio.wait({failed})
    await tasks.end()
    await tasks.end(failed)
    assert isinstance(failed.exception(), ValueError)
