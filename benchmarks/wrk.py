"""Load on one address by wrk, whose single thread costs less than any Python client would."""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

CONNECTIONS = 32

_SAY = """
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format('\\n{"requests":%d,"took_us":%d,"refused":%d,"broken":%d,"p50_us":%d,"p99_us":%d}',
    summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Load:
    """What came of it."""

    requests: int
    took_us: int
    refused: int
    broken: int
    p50_us: int
    p99_us: int

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.requests / (self.took_us / 1e6)


def post(url: str, body: bytes, for_s: int) -> Load:
    """Send one JSON body again and again."""
    script = (
        f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [==[{body.decode()}]==]'
    )
    return _run(url, script, for_s)


def get(url: str, paths: list[str], for_s: int) -> Load:
    """Ask for the paths in turn."""
    listed = ", ".join(f'"{path}"' for path in paths)
    turns = "local at = 0\nrequest = function()\n  at = at % #paths + 1\n  return wrk.format(nil, paths[at])\nend"
    return _run(url, f"local paths = {{{listed}}}\n{turns}", for_s)


def _run(url: str, script: str, for_s: int) -> Load:
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("This benchmark loads the service with wrk, which is not here: `apt-get install wrk`.")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script + _SAY)
        file.flush()
        command = [wrk, "--threads", "1", "--connections", f"{CONNECTIONS}", "--duration", f"{for_s}s"]
        said = subprocess.run([*command, "--script", file.name, url], check=True, capture_output=True, text=True)
    load = msgspec.json.decode(said.stdout.splitlines()[-1], type=Load)
    if load.refused or load.broken or not load.requests:
        raise SystemExit(f"{Path(url).name}: {load.refused} answers were not 200 and {load.broken} never came: {load}")
    return load
