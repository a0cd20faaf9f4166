"""A process that helps another one's training: rank 1 and up. `training.ranks` starts it and tells it what to do.

It reports nothing and saves nothing. What ends it is its last word, or the end of the process that started it.
"""

import os
import signal
import sys
import traceback
from typing import Any

import msgspec

from gpu_runner import processes
from gpu_runner.child import explain, use_only
from gpu_runner.journal import Journal
from gpu_runner.recipes import finetune
from gpu_runner.training import ranks
from gpu_runner.training.ranks import Complaint, Orders
from gpu_runner.work import Stop, Work
from jobs.events import Event
from jobs.paths import DataRoot


class Unheard(Journal):
    """Rank 0 says it all."""

    def __init__(self) -> None:
        self._doorbell = None

    def _write(self, kind: type[Event], /, **fields: Any) -> None:
        pass


def run(orders: Orders) -> None:
    """Take part until the run's end."""
    use_only(orders.start.device)
    root, start = DataRoot(orders.settings.data_folder), orders.start
    work = Work(
        job_id=start.job_id,
        attempt=start.attempt,
        spec=start.spec,
        device=start.device,
        cores=orders.cores,
        root=root,
        folder=root.attempt(start.job_id, start.attempt),
        journal=Unheard(),
        stop=Stop(),
        settings=orders.settings,
    )
    finetune.follow(work, ranks.follow(orders))  # type: ignore[arg-type] - only trainings have followers


def main() -> int:
    for wish in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(wish, signal.SIG_IGN)  # they are for rank 0, which ends this process
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    orders = msgspec.json.decode(sys.stdin.buffer.read(), type=Orders)
    processes.die_with_parent(orders.parent)
    try:
        run(orders)
    except Exception as error:
        traceback.print_exc()
        answer.write(msgspec.json.encode(Complaint(*explain(error))))
        answer.close()
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # what is left of NCCL would wait for the others, or end this process in a way of its own
