"""A damaged database is moved out of the way, whole, so that the node can be filled by its peers and nothing is lost.

The marker of the origin goes first: without it whatever is found next begins a new origin. Then the log and its index,
since beside a new database they would be poison; the database goes last, so that a start in between finds it again.
"""

from __future__ import annotations

from pathlib import Path

from mesh.errors import ConfigError
from node.env import Disk


def set_aside(disk: Disk, path: Path) -> str:
    """Rename a database that no connection has open, and its log; returns the new name. ConfigError when that fails."""
    number = 1
    try:
        while disk.exists(f"{path.name}.corrupt-{number}"):
            number += 1
        name = f"{path.name}.corrupt-{number}"
        disk.remove("origin")
        disk.remove(f"{path.name}-shm")
        if disk.exists(f"{path.name}-wal"):
            disk.rename(f"{path.name}-wal", f"{name}-wal")
        disk.rename(path.name, name)
    except OSError as error:
        raise ConfigError(
            f"the damaged database {path} cannot be renamed ({error.strerror}): make its folder writable, or move it "
            "away by hand, and start again"
        ) from error
    return name
