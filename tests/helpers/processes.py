"""Who lives on a data root."""

import os
from pathlib import Path


def processes_of(root: Path) -> dict[int, str]:
    """pid → command line of every living process that belongs to a data root, its Redis included, zombies not."""
    marker = f"TRAINING_DATA_ROOT={root}".encode()
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if not command:  # a zombie
                continue
            is_ours = f"{root}/redis/" in command or marker in (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if is_ours:
            found[int(folder.name)] = command
    return found
