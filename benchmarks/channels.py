"""The baseline of `live`: Litestar's channels plugin on its Redis-stream backend, one message an event.

`python -m benchmarks.channels` serves the socket `/events` on TRAINING_PORT, from the Redis at REDIS_URL.
"""

import os

import uvicorn
from litestar import Litestar
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.redis import RedisChannelsStreamBackend
from redis.asyncio import Redis

CHANNEL = "events"


def backend(redis_url: str) -> RedisChannelsStreamBackend:
    """The transport, for the app and for whoever publishes."""
    return RedisChannelsStreamBackend(history=1000, redis=Redis.from_url(redis_url))


def create_app(redis_url: str) -> Litestar:
    plugin = ChannelsPlugin(backend(redis_url), channels=[CHANNEL], create_ws_route_handlers=True)
    return Litestar(plugins=[plugin], logging_config=None)


def main() -> None:
    uvicorn.run(
        create_app(os.environ["REDIS_URL"]),
        port=int(os.environ["TRAINING_PORT"]),
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        access_log=False,
        log_config=None,
    )


if __name__ == "__main__":
    main()
