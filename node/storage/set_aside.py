"""A database is moved out of the way, whole: a damaged one, so that peers can fill the node, or one that is replaced.

The marker of the origin goes first: without it whatever is found next begins a new origin. Then the log and its index,
since beside a new database they would be poison; the database goes last, so that a start in between finds it again.
An exchange has no moment without a database: the old one gets its second name first, and one rename is the exchange.
"""

from __future__ import annotations

import os
from pathlib import Path

from mesh.errors import ConfigError
from node import durable_files
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


def exchange(path: Path, new: Path) -> Path:
    """Put the database `new` in the place of the one at `path`; returns where that one, and its log, are kept.

    `new` is whole, without a log, synced, and in the same folder; no connection has either open. Interrupted anywhere,
    one of the two is at `path`, the old one perhaps under a second name (`drop_second_names`). ConfigError when the
    exchange fails: the old one is still there.
    """
    kept = _free_name(path)
    logs = [(_log(path), _log(kept))] if _log(path).exists() else []
    try:
        for name, second in ((path, kept), *logs):
            os.link(name, second)
        durable_files.sync_directory(path.parent)
        path.with_name("origin").unlink(missing_ok=True)
        path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
        _log(path).unlink(missing_ok=True)
        durable_files.sync_directory(path.parent)
        new.rename(path)
    except OSError as error:
        drop_second_names(path)
        raise ConfigError(f"cannot replace {path} ({error.strerror}): the database that was there stays") from error
    durable_files.sync_directory(path.parent)
    return kept


def drop_second_names(path: Path) -> None:
    """Take away what an interrupted exchange left of the second name of a database that is still in its place."""
    for kept in path.parent.glob(f"{path.name}.replaced-*"):
        if path.exists() and kept.exists() and kept.samefile(path):
            if _log(kept).exists() and not _log(path).exists():
                _log(kept).rename(_log(path))
            _log(kept).unlink(missing_ok=True)
            kept.unlink()


def _free_name(path: Path) -> Path:
    number = 1
    while (kept := path.with_name(f"{path.name}.replaced-{number}")).exists():
        number += 1
    return kept


def _log(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")
