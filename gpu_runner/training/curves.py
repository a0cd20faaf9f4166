"""A run's curves as a TensorBoard event file, for those who compare runs there: `tensorboard --logdir jobs/<id>`.

Written by the run log, without TensorFlow. tensorboardX's own SummaryWriter has a thread and a queue more than is
needed here, so its record writer is used.
"""

from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary


class Curves:
    """One event file in a folder of its own, made with the first values."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: EventsWriter | None = None

    def add(self, step: int, values: dict[str, float], at: float) -> None:
        """Values by series name at a step, measured `at` seconds since 1970. In the file when this returns."""
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(self._folder / "events"))
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._writer.write_event(Event(wall_time=at, step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
