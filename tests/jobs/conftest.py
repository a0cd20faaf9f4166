"""Examples of everything the language can say, and a real Redis."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs import bus, redis_server
from jobs.async_client import AsyncClient
from jobs.bus import Bus
from jobs.client import Client
from jobs.paths import DataRoot
from jobs.settings import Settings

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    root = DataRoot(tmp_path / "data")
    root.datasets.mkdir(parents=True)
    return root


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The embedded server, for a module's tests."""
    settings = Settings(data_root=str(tmp_path_factory.mktemp("redis")))
    yield redis_server.ensure(settings)
    redis_server.stop(settings)


@pytest.fixture
async def real_bus(redis_url: str) -> AsyncIterator[Bus]:
    """A bus on an empty Redis."""
    connected = bus.connect(redis_url)
    await connected._redis.flushall()
    yield connected
    await connected.close()


class Awaited:
    """An `AsyncClient` with the manners of a `Client`, so that one test holds both to the same."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self._client, self._runner = client, runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            made = getattr(self._client, name)(*arguments, **options)
            return self._iterate(made) if hasattr(made, "__anext__") else self._runner.run(made)

        return call

    def _iterate(self, source: AsyncGenerator[Any, None]) -> Iterator[Any]:
        async def upcoming() -> Any:
            return await anext(source)

        try:
            while True:
                yield self._runner.run(upcoming())
        except StopAsyncIteration:
            return
        finally:
            self._runner.run(source.aclose())


@pytest.fixture(params=["sync", "async"])
def client_of(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes clients of a service: each test runs with the one kind, then with the other."""
    with ExitStack() as stack:
        if request.param == "sync":
            yield lambda *arguments, **options: stack.enter_context(Client(*arguments, **options))
            return
        runner = stack.enter_context(asyncio.Runner())

        def make(*arguments: Any, **options: Any) -> Awaited:
            client = Awaited(AsyncClient(*arguments, **options), runner)
            stack.callback(client.close)
            return client

        yield make
