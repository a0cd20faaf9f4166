"""A log that cannot be written must not stop what it tells of."""

import subprocess
import sys

PROGRAM = """
import structlog
from jobs import logs

logs.set_up("info")
for number in range(3000):  # more than any buffer holds
    structlog.get_logger().info("said", number=number)
print("goes on")
"""


def test_a_full_disk_under_the_log_stops_nothing() -> None:
    """Found by SEED=565067-disk-3: the service's intake ended for ever with the line it could not write."""
    with open("/dev/full", "w") as full:
        answer = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=full, text=True)
    assert answer.stdout == "goes on\n"
