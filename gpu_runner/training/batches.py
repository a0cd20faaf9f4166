"""The batches of a run: rows opened, encoded and put together ahead of the step that needs them.

Used by the loop. Threads, because decoding pictures and tokenising leave the interpreter to others, and a batch need
not be copied between processes. Their number changes when a batch is ready, never what is in it.
"""

import copy
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

from torch import Tensor

from gpu_runner.training.encoding import Encoded, RowEncoder, collate
from gpu_runner.training.plan import Plan
from gpu_runner.training.selection import Selection

CACHE_BYTES = 256 * 2**20


class Batch(NamedTuple):
    """Rows that are computed together, as `collate` puts them. With pictures apart `rows` are they one by one, by their
    index and in their order, and `tensors` are without pixels."""

    tensors: dict[str, Tensor]
    rows: dict[int, Encoded]


class EncodedRows:
    """Rows as tensors, kept up to `limit_bytes`: in a small dataset every picture is decoded once.

    What came first stays, for in each epoch every row is asked for once: no choice of victims does better.
    """

    def __init__(self, encoder: RowEncoder, rows: Selection, limit_bytes: int = CACHE_BYTES) -> None:
        self._encoder = encoder
        self._rows = rows
        self._left = limit_bytes
        self._kept: dict[int, Encoded] = {}
        self._lock = threading.Lock()
        self._own = threading.local()

    def get(self, index: int) -> Encoded:
        """The row at an index, from any thread. Raises DatasetInvalid."""
        known = self._kept.get(index)
        if known is not None:
            return known
        encoded = self._encoder_of_thread().encode(*self._rows.open(index))
        size = _bytes_of(encoded)
        with self._lock:
            if index not in self._kept and size <= self._left:
                self._kept[index] = encoded
                self._left -= size
        return encoded

    def _encoder_of_thread(self) -> RowEncoder:
        """A fast tokeniser refuses two threads at once ("Already borrowed"), so each has its own."""
        if threading.current_thread() is threading.main_thread():
            return self._encoder
        if not hasattr(self._own, "encoder"):
            with self._lock:
                self._own.encoder = copy.deepcopy(self._encoder)
        encoder: RowEncoder = self._own.encoder
        return encoder


class Batches:
    """The micro-batches of a plan in their order, from step `first` on; `workers` threads make them ahead. Pictures
    `apart` are for a cache of what is seen in them.

    A context: the threads end with it.
    """

    def __init__(
        self, rows: EncodedRows, plan: Plan, pad_id: int, *, first: int, workers: int, apart: bool = False
    ) -> None:
        self._rows = rows
        self._plan = plan
        self._pad_id = pad_id
        self._apart = apart
        self._upcoming = (indices for step in range(first, plan.total_steps) for indices in plan.share(step))
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batches") if workers else None
        self._ahead: deque[Future[Batch]] = deque()
        self._most_ahead = workers + 1

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def of_step(self, step: int) -> Iterator[Batch]:
        """The micro-batches of a step; steps are asked for in their order. Raises DatasetInvalid."""
        for _ in self._plan.share(step):
            yield self._next()

    def _next(self) -> Batch:
        if self._pool is None:
            return self._made(next(self._upcoming))
        while len(self._ahead) < self._most_ahead and (indices := next(self._upcoming, None)) is not None:
            self._ahead.append(self._pool.submit(self._made, indices))
        return self._ahead.popleft().result()

    def _made(self, indices: list[int]) -> Batch:
        rows = {index: self._rows.get(index) for index in indices}
        tensors = collate(list(rows.values()), self._pad_id, has_pixels=not self._apart)
        return Batch(tensors, rows if self._apart else {})


def _bytes_of(encoded: Encoded) -> int:
    tensors = [encoded.input_ids, encoded.labels, *encoded.per_token.values(), *encoded.pictures.values()]
    return sum(tensor.nbytes for tensor in tensors)
