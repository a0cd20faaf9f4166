"""The runner's side of the zygote: starts it, asks it for children, hears of their ends. Knows no torch.

A zygote that dies is replaced; its children die with it and count as interrupted.
"""

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from gpu_runner import processes, zygote
from gpu_runner.child import Assignment
from gpu_runner.zygote import Exited, Fork, Forked, NotForked, Ready, Request, Signal
from jobs.settings import Settings, variable

log = structlog.get_logger()

_ALLOWED = re.compile(
    r"PATH|HOME|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|PYTHONPATH|LD_LIBRARY_PATH|XDG_CACHE_HOME"
    r"|HF_HOME|HF_HUB_CACHE|HF_HUB_OFFLINE|HF_ENDPOINT|CUDA_VISIBLE_DEVICES|CUDA_HOME|NVIDIA_VISIBLE_DEVICES"
    r"|(TORCH_)?NCCL_\w+|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|(?i:https?_proxy|no_proxy)"
)
_SECRET = ("token", "token_file", "redis_url")
_FIXED = {
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order NVML counts in
    "OMP_WAIT_POLICY": "PASSIVE",  # two trainings side by side would spin against each other
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # rows of many lengths would fragment a GPU's memory
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking whether there is a GPU must not initialise CUDA in the zygote
    "TOKENIZERS_PARALLELISM": "false",
}
_START_AGAIN_S = 1.0  # a zygote that dies at once is not started in a busy loop
_LEAVE_WITHIN_S = 5.0


class NotStarted(Exception):
    """No child could be forked; the message says why."""


@dataclass(frozen=True)
class Ending:
    """How a child ended. `exit_code` is negative for a signal, None when its zygote died and nobody saw it."""

    exit_code: int | None
    swept: bool


@dataclass(frozen=True)
class Child:
    """A forked child. `ended` is done when it is reaped and what it left behind is gone."""

    pid: int
    ended: asyncio.Future[Ending]


def environment(settings: Settings, own: Mapping[str, str]) -> dict[str, str]:
    """What zygote and children get to see: an allow-list of this process's environment, the settings, no secrets."""
    allowed = {name: value for name, value in own.items() if _ALLOWED.fullmatch(name)}
    secrets = {variable(field) for field in _SECRET}
    ours = {name: value for name, value in settings.to_environment().items() if name not in secrets}
    offline = {"HF_HUB_OFFLINE": "1"} if settings.hf_offline else {}
    return allowed | ours | offline | _FIXED | {variable("data_root"): str(settings.data_folder)}


class Forker:
    """Keeps one zygote alive. `run` is its life; the other methods may be called as soon as that is scheduled."""

    def __init__(self, environment: Mapping[str, str], preload: Sequence[str]) -> None:
        self._environment = dict(environment)
        self._preload = preload
        self._ready = asyncio.Event()
        self._asking = asyncio.Lock()
        self._connection: socket.socket | None = None
        self._reply: asyncio.Future[Child] | None = None
        self._children: dict[int, asyncio.Future[Ending]] = {}

    async def run(self) -> None:
        """Start the zygote, again whenever it dies, until cancelled: then it and all its children end."""
        while True:
            process, connection = self._start()
            self._connection = connection
            try:
                await self._listen(connection)
                log.error("zygote.died", pid=process.pid, children=len(self._children))
            finally:
                self._ready.clear()
                self._connection = None
                connection.close()
                try:
                    await _whole(asyncio.to_thread(_see_off, process))
                finally:
                    self._give_up_children()
            await asyncio.sleep(_START_AGAIN_S)

    async def until_ready(self) -> None:
        await self._ready.wait()

    async def fork(self, assignment: Assignment, doorbell: int, output: int, lock: int) -> Child:
        """A new child that gets the three descriptors; the caller closes its own.

        Raises:
            NotStarted: there is none.
        """
        async with self._asking:
            self._reply = asyncio.get_running_loop().create_future()
            self._say(Fork(assignment), doorbell, output, lock)
            return await self._reply

    def signal(self, child: Child, number: signal.Signals) -> None:
        """Send a signal; SIGKILL goes to the child's whole session. Nothing happens when it has ended."""
        if not child.ended.done():
            with contextlib.suppress(NotStarted):
                self._say(Signal(child.pid, number))

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", zygote.__name__, str(theirs.fileno()), *self._preload],
                pass_fds=[theirs.fileno()],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches the runner, which decides
            )
        return process, ours

    def _say(self, request: Request, *descriptors: int) -> None:
        if self._connection is None:
            raise NotStarted("the process that starts jobs is not there")
        try:
            socket.send_fds(self._connection, [zygote.encode(request)], descriptors)
        except OSError as error:
            raise NotStarted(f"the process that starts jobs cannot be told: {error.strerror}") from error

    async def _listen(self, connection: socket.socket) -> None:
        """Take answers until the zygote is gone."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionResetError):
            while message := await loop.sock_recv(connection, zygote.LONGEST_MESSAGE):
                self._on_answer(zygote.decode_answer(message))

    def _on_answer(self, answer: zygote.Answer) -> None:
        match answer:
            case Ready():
                log.info("zygote.ready", seconds=answer.seconds, warm=answer.warm)
                self._ready.set()
            case Forked():
                child = Child(answer.pid, asyncio.get_running_loop().create_future())
                self._children[answer.pid] = child.ended
                self._settle(child)
            case NotForked():
                self._settle(NotStarted(f"no process could be started: {answer.reason}"))
            case Exited():
                self._children.pop(answer.pid).set_result(Ending(answer.exit_code, answer.swept))

    def _settle(self, reply: Child | NotStarted) -> None:
        if self._reply is None or self._reply.done():
            return
        if isinstance(reply, NotStarted):
            self._reply.set_exception(reply)
        else:
            self._reply.set_result(reply)

    def _give_up_children(self) -> None:
        self._settle(NotStarted("the process that starts jobs died"))
        for ended in self._children.values():
            ended.set_result(Ending(None, swept=True))
        self._children.clear()


async def _whole(work: Coroutine[Any, Any, None]) -> None:
    """Wait for its end however often this is cancelled; `tasks.end` does that again and again."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


def _see_off(process: subprocess.Popen[bytes]) -> None:
    """Wait until the zygote left, which ends its children; then nothing of it may live. Blocks."""
    try:
        process.wait(_LEAVE_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    processes.sweep(())
