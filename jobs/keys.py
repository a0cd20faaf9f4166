"""Every name in Redis. The service and its runners share one database that holds nothing else."""

EVENTS = "training:events"  # stream: what runners say, read by the recorder from the position stored in SQLite
EPOCH = "training:epoch"  # string: a random word that dies with the stream; another epoch means start from 0

FIELD = "m"  # the one field of every stream entry: a message as JSON


def commands(runner_id: str) -> str:
    """Stream of the service's wishes to one runner."""
    return f"training:jobs:{runner_id}"


def queue(runner_id: str, slot: str) -> str:
    """arq's queue for one kind of slot of one runner."""
    return f"training:queue:{runner_id}:{slot}"


def queue_health(runner_id: str, slot: str) -> str:
    """arq's own health key of that queue's worker."""
    return f"training:health:{runner_id}:{slot}"
