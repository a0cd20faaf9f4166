"""Programs are started again when they die, and not for ever."""

import os
import socket
import sys
import time

import pytest

from jobs.errors import Misconfigured
from service.programs import Program, free_port, is_free


def _program(code: str) -> Program:
    return Program("test program", (sys.executable, "-c", code), os.environ, None)


def _until_dead(program: Program) -> None:
    program.wait_for_end(10)


def test_a_program_that_died_is_started_again(tmp_path) -> None:
    program = _program(f"open({str(tmp_path / 'starts')!r}, 'a').write('x')")
    program.start()
    _until_dead(program)
    program.revive()
    _until_dead(program)
    assert (tmp_path / "starts").read_text() == "xx"


def test_a_program_that_refuses_its_settings_is_not_started_again() -> None:
    program = _program("raise SystemExit(2)")
    program.start()
    _until_dead(program)
    with pytest.raises(Misconfigured, match="test program"):
        program.revive()


def test_a_program_that_ignores_the_request_to_end_is_killed(tmp_path) -> None:
    ready = tmp_path / "ready"
    program = _program(
        f"import signal,time; signal.signal(15, signal.SIG_IGN); open({str(ready)!r}, 'w'); time.sleep(60)"
    )
    program.start()
    while not ready.exists():
        time.sleep(0.01)
    program.ask_to_end()
    began = time.monotonic()
    program.wait_for_end(0.2)
    assert time.monotonic() - began < 5


def test_a_port_somebody_listens_on_is_not_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not is_free("127.0.0.1", taken.getsockname()[1])
    assert is_free("127.0.0.1", free_port("127.0.0.1"))
