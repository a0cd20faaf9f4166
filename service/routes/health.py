"""Whether the service can work: for people, load balancers and the programs that start it."""

from datetime import UTC, datetime
from typing import Literal

from litestar import Response, get

from jobs.bus import Bus
from service.answers import Answer
from service.recorder import Recorder
from service.store import Store

_TAGS = ["health"]


class Health(Answer, frozen=True, kw_only=True):
    """`degraded`: work is accepted, but waits for Redis, a runner, or a part of the service that is `failing`; the log
    says why. `runners` counts those that are alive."""

    status: Literal["healthy", "degraded", "unhealthy"]
    timestamp: datetime
    redis: bool
    database: bool
    runners: int
    failing: tuple[str, ...]


class Alive(Answer, frozen=True, kw_only=True):
    status: Literal["healthy"] = "healthy"


@get("/health", tags=_TAGS)
async def health(store: Store, bus: Bus, recorder: Recorder) -> Response[Health]:
    """200 while work is accepted; 503 without the database, and when the service is about to end over a fault."""
    return await _health(store, bus, recorder)


@get("/health/ready", tags=_TAGS)
async def ready(store: Store, bus: Bus, recorder: Recorder) -> Response[Health]:
    """The same, under the name that orchestrators ask for."""
    return await _health(store, bus, recorder)


@get("/health/live", tags=_TAGS)
async def live() -> Alive:
    """200 while the process answers."""
    return Alive()


async def _health(store: Store, bus: Bus, recorder: Recorder) -> Response[Health]:
    database, redis = await store.is_healthy(), await bus.is_reachable()
    runners = sum(view.alive for view in recorder.runners.values())
    upkeep = recorder.upkeep
    takes_work, is_well = database and not upkeep.is_over, redis and runners and not upkeep.failing
    body = Health(
        status="unhealthy" if not takes_work else "healthy" if is_well else "degraded",
        timestamp=datetime.now(UTC),
        redis=redis,
        database=database,
        runners=runners,
        failing=tuple(sorted(upkeep.failing)),
    )
    return Response(body, status_code=200 if takes_work else 503)
