"""The warm parent of all children: imports the heavy stack once, then forks a child per request.

Single-threaded on purpose, and it only imports: one torch operation here would make every child hang. `Forker` starts
it as `python -m gpu_runner.zygote <socket> <module>…` and talks to it over a SOCK_SEQPACKET socket pair: `Fork` (with
the child's descriptors) and `Signal` go in, `Ready`, `Forked`, `NotForked` and `Exited` come out. The end of that
connection means that the runner is gone: everything is killed and the zygote leaves.
"""

import contextlib
import gc
import logging
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import structlog

from gpu_runner import child, processes
from gpu_runner.child import Assignment
from jobs import logs
from jobs.settings import Settings

log = structlog.get_logger()

LONGEST_MESSAGE = 1 << 16
_KILLED_BEFORE_OTHERS = "600"  # when memory ends the kernel takes a job, not the runner nor Redis


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of what goes over the socket."""


class Fork(Message, frozen=True):
    """Run this in a new child; three descriptors come along: doorbell, output.log, lock file."""

    assignment: Assignment


class Signal(Message, frozen=True):
    """Send a signal to a child if it is still there; SIGKILL goes to its whole session."""

    pid: int
    number: int


class Ready(Message, frozen=True):
    """Everything is imported. Not `warm`: each child starts a fresh interpreter, for the reason in the log."""

    seconds: float
    warm: bool


class Forked(Message, frozen=True):
    pid: int


class NotForked(Message, frozen=True):
    reason: str


class Exited(Message, frozen=True):
    """A child ended; `exit_code` is negative for a signal. Not `swept`: something of it could not be ended."""

    pid: int
    exit_code: int
    swept: bool


Request = Fork | Signal
Answer = Ready | Forked | NotForked | Exited

encode = msgspec.json.Encoder().encode
decode_request = msgspec.json.Decoder(Request).decode
decode_answer = msgspec.json.Decoder(Answer).decode


def preload(modules: Sequence[str]) -> bool:
    """Import what children will need. False when a fork could not use it: then children start afresh."""
    for module in modules:
        try:
            import_module(module)
        except Exception as error:  # the recipe that needs it will say so in its own job
            log.warning("preload.failed", module=module, error=f"{type(error).__name__}: {error}")
    obstacle = _obstacle()
    if obstacle:
        log.warning("zygote.cold", why=obstacle, means="children start with a fresh interpreter, some seconds slower")
    gc.collect()
    gc.freeze()  # the collector would touch, and so copy, every shared page
    return obstacle is None


def _obstacle() -> str | None:
    """Why Python must not go on in a forked child."""
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    if threads > 1:
        return f"preloading left {threads} threads"
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "preloading initialised CUDA"
    return None


class Zygote:
    """The loop between the socket and the children."""

    def __init__(self, connection: socket.socket, *, warm: bool) -> None:
        self._connection = connection
        self._warm = warm
        self._pid = os.getpid()
        self._children: set[int] = set()
        self._died, died = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._own = [self._died, died]
        signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler nothing is written to the descriptor
        signal.set_wakeup_fd(died, warn_on_full_buffer=False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ, self._on_message)
        self._selector.register(self._died, selectors.EVENT_READ, self._on_death)

    def serve(self, ready: Ready) -> NoReturn:
        self._say(ready)
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _say(self, answer: Answer) -> None:
        with contextlib.suppress(BrokenPipeError):  # the runner is gone: the next read says so
            self._connection.send(encode(answer))

    def _on_message(self) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(self._connection, LONGEST_MESSAGE, 3)
        except ConnectionResetError:
            message, descriptors = b"", []
        if not message:
            self._leave()
        request = decode_request(message)
        if isinstance(request, Fork):
            self._fork(request, descriptors)
        elif request.pid in self._children:
            self._signal(request)

    def _signal(self, request: Signal) -> None:
        if request.number == signal.SIGKILL:
            processes.kill_session(request.pid)
        else:
            os.kill(request.pid, request.number)  # ours until we reap it, so it is there

    def _on_death(self) -> None:
        """Reap what died. What a child left behind was handed to us and is ended before anything is said."""
        os.read(self._died, 4096)
        processes.reap_orphans(self._children)
        for pid in tuple(self._children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._children.discard(pid)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
                swept = processes.sweep(self._children)
                self._say(Exited(pid, os.waitstatus_to_exitcode(status), swept))

    def _leave(self) -> NoReturn:
        for pid in self._children:
            processes.kill_session(pid)
        processes.sweep(())
        os._exit(0)

    def _fork(self, request: Fork, descriptors: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._say(NotForked(str(error)))
        else:
            if pid == 0:
                self._become(request.assignment, *descriptors)
            self._children.add(pid)
            self._say(Forked(pid))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _become(self, assignment: Assignment, doorbell: int, output: int, _lock: int) -> NoReturn:
        """The child's side of the fork; the lock stays open as long as anything of the attempt lives."""
        status = 1
        try:
            os.setsid()
            processes.die_with_parent(self._pid)
            self._let_go()
            _print_to(output)
            with contextlib.suppress(OSError):  # a hardened container's /proc is read-only
                Path("/proc/self/oom_score_adj").write_text(_KILLED_BEFORE_OTHERS)
            status = self._run(assignment, doorbell)
        except SystemExit as ending:
            status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            _leave_with(status)

    def _let_go(self) -> None:
        """Nothing of the zygote's own stays open or is listened to."""
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._connection.close()
        for descriptor in self._own:
            os.close(descriptor)
        # A child that is to leave before it listens has nothing to save: SIGUSR2 may end it as SIGTERM does.
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)

    def _run(self, assignment: Assignment, doorbell: int) -> int:
        if not self._warm:
            arguments = [sys.executable, "-m", child.__name__, str(doorbell), encode(assignment).decode()]
            os.execv(sys.executable, arguments)
        os.set_inheritable(doorbell, False)
        return child.run(assignment, doorbell)


def _print_to(output: int) -> None:
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _leave_with(status: int) -> NoReturn:
    """End the child without the zygote's exit handlers, even if its log cannot be written."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def main(arguments: list[str]) -> NoReturn:
    began = time.monotonic()
    logs.set_up(Settings.from_environment().log_level)
    connection = socket.socket(fileno=int(arguments[0]))
    connection.set_inheritable(False)
    # The runner decides when we leave. SIGUSR1 would kill a child that does not listen to it yet.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # At every start bitsandbytes asks for an optional package that it does not need.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    processes.adopt_orphans()
    processes.die_with_parent(os.getppid())  # nobody reads the connection during seconds of importing
    warm = preload(arguments[1:])
    processes.outlive_parent()  # with children its end must be orderly: they are ended first
    zygote = Zygote(connection, warm=warm)
    zygote.serve(Ready(round(time.monotonic() - began, 2), warm))


if __name__ == "__main__":
    main(sys.argv[1:])
