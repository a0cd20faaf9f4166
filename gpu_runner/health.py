"""Whether this host's runner takes work: `python -m gpu_runner.health` exits with 0 when it does. For containers.

arq's workers leave a key in Redis every five seconds that lives for six: it is there only while the runner's loop
turns and reaches Redis. Whether the service hears the runner, only `GET /api/runners` says.
"""

import asyncio
import sys

from arq.connections import ArqRedis

from jobs import keys, redis_server
from jobs.bus import UNREACHABLE
from jobs.errors import Misconfigured
from jobs.settings import REFUSED, Settings
from jobs.specs import Slot

_ANSWER_WITHIN_S = 3


async def is_working(settings: Settings) -> bool:
    """Whether all queues of the runner that these settings name are served."""
    queues = [keys.queue_health(settings.runner_name, slot) for slot in Slot]
    pool = ArqRedis.from_url(
        redis_server.address(settings), socket_connect_timeout=_ANSWER_WITHIN_S, socket_timeout=_ANSWER_WITHIN_S
    )
    try:
        return bool(await pool.exists(*queues) == len(queues))
    except UNREACHABLE:
        return False
    finally:
        await pool.aclose()


def main() -> int:
    """The exit status."""
    try:
        settings = Settings.from_environment()
    except Misconfigured as error:
        sys.stderr.write(f"gpu_runner.health: {error.message}\n")
        return REFUSED
    if asyncio.run(is_working(settings)):
        return 0
    sys.stderr.write(f"The runner {settings.runner_name!r} takes no work: it is not there, or it has no Redis.\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
