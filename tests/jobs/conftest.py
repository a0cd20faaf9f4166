"""Examples of everything the language can say, and a real Redis."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs import bus, redis_server
from jobs.bus import Bus
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
