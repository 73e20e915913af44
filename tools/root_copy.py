"""A copy of a root's database, taken without changing one byte of the root, whether a node runs on it or not.

A running node's database is copied by SQLite's backup, through a connection that cannot write: it holds up no commit.
When no node runs, its files are copied as they are, log included, since even to open them would create files beside
them; the root's lock is held meanwhile, so that none starts.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from mesh.errors import ConfigError
from node.storage.database import DISK_ERRORS, open_connection

DATABASE = "relaymesh.db"


def database_bytes(root: Path) -> int:
    """The size of a root's database and its log. ConfigError when there is none."""
    database = root / DATABASE
    if not database.is_file():
        raise ConfigError(f"{root} holds no {DATABASE}: give the --root of a node that ran at least once")
    log = database.with_name(f"{DATABASE}-wal")
    return database.stat().st_size + (log.stat().st_size if log.exists() else 0)


def copy_database(root: Path, copy: Path) -> bool:
    """Copy the database of a root into a new file; True when a node was running on it.

    ConfigError when it cannot be read, or is no database of ours.
    """
    database_bytes(root)
    try:
        with _lock_of(root) as free:
            if free:
                _copy_files(root / DATABASE, copy)
            else:
                _back_up(root / DATABASE, copy)
    except OSError as error:
        raise ConfigError(f"cannot read {root}: {error.strerror or error}; run this as the user of the node") from error
    except DISK_ERRORS as error:
        raise ConfigError(_unreadable(root, error)) from error
    connection = open_connection(copy, "")  # which refuses what is not ours
    try:
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    except DISK_ERRORS as error:
        raise ConfigError(_unreadable(root, error)) from error
    finally:
        connection.close(True)
    return not free


def _unreadable(root: Path, error: apsw.Error) -> str:
    return f"the database in {root} cannot be read ({error}): a node that starts on it says what can be done"


@contextmanager
def _lock_of(root: Path) -> Iterator[bool]:
    """Hold the lock by which a node owns its root; False when a node has it."""
    try:
        lock = (root / "node.lock").open("rb")
    except FileNotFoundError:
        yield True  # no node has ever run on this folder: somebody put the database there
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _copy_files(database: Path, copy: Path) -> None:
    shutil.copyfile(database, copy)
    log = database.with_name(f"{database.name}-wal")
    if log.exists():
        shutil.copyfile(log, copy.with_name(f"{copy.name}-wal"))


def _back_up(database: Path, copy: Path) -> None:
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    source = apsw.Connection(f"{database.resolve().as_uri()}?mode=ro", flags=flags)
    target = apsw.Connection(str(copy))
    try:
        with target.backup("main", source, "main") as backup:
            backup.step()  # all pages under one read lock: a step at a time would begin anew after each commit
    finally:
        target.close(True)
        source.close(True)
