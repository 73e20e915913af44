"""A whole database as one file: copied out of a running store, and read and written piece by piece.

A copy is what SQLite's online backup makes, so commits go on meanwhile, and it is what was true when it ended. It
carries the replicated rows, the vector, and what is parked in quarantine: those versions count as seen by the vector,
so whoever adopts the vector must have them. Every other table is local to its node, and is emptied: a copy must not
tell who made it, nor be taken for it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

import apsw

from mesh.tables import Table
from node.env import Disk
from node.storage.database import META_HLC
from node.storage.reader import META_STABLE

log = logging.getLogger(__name__)

COPY_PAGES = 200
"""Pages a step: 800 KiB, about a millisecond, after which commits have their turn."""
_CALL_BYTES = 1 << 16
"""SQLite's own VFS takes less than 128 KiB in one call."""
_SHARED = ("schema_migrations", "origins", "vector", "quarantine", "meta")
_FILE_FLAGS = apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_READWRITE
# A super-journal is the one kind of file whose first sync also syncs the folder, which makes its name durable.


class DatabaseCopy:
    """One copy in the making. Every method runs on the writing thread, between two batches. Raises apsw errors."""

    def __init__(self, source: apsw.Connection, path: Path, vfs: str, tables: Sequence[Table]) -> None:
        """`path` must not exist."""
        self.is_over = False
        """Whether it holds no connection any more."""
        self._tables = tables
        self._target = apsw.Connection(str(path), vfs=vfs or None)
        try:
            self._target.pragma("locking_mode", "exclusive")
            self._target.pragma("temp_store", 2)
            self._target.pragma("synchronous", 0)  # whoever reads the file checks its digest
            # The source is the writing connection itself: what it commits meanwhile enters the copy, which would
            # begin again after every commit of another one.
            self._backup = self._target.backup("main", source, "main")
        except apsw.Error:
            self._target.close(True)
            raise

    def step(self) -> bool:
        """Copy some pages; True when that was the last of them."""
        return self._backup.step(COPY_PAGES)

    def finish(self) -> None:
        """Empty what is local, and leave one file without a log."""
        self._backup.finish()
        target = self._target
        target.pragma("journal_mode", "delete")
        target.execute("BEGIN IMMEDIATE")
        for name in local_tables(target, self._tables):
            target.execute(f'DELETE FROM "{name}"')
        target.execute("DELETE FROM meta WHERE name NOT IN (?, ?)", (META_HLC, META_STABLE))
        target.execute("COMMIT")
        target.close()
        self.is_over = True

    def abandon(self) -> None:
        """Give up; the file is of no use."""
        self.is_over = True
        try:
            self._backup.close(True)  # it holds a lock on the source
        finally:
            self._target.close(True)


def local_tables(connection: apsw.Connection, tables: Sequence[Table]) -> list[str]:
    """Tables of a database that are neither replicated nor part of what a copy carries, by name."""
    shared = {*_SHARED, *(table.name for table in tables)}
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    return [name for (name,) in names if name not in shared and not name.startswith("sqlite_")]


class CopyFile:
    """A file beside the database, reached through the database's own VFS. Not to be open as a database meanwhile."""

    def __init__(self, path: Path, vfs: str) -> None:
        """Opens the file, making it if need be. Raises apsw errors, as all methods do."""
        self._file = apsw.VFSFile(vfs, str(path), [_FILE_FLAGS, 0])

    def size(self) -> int:
        """Bytes in it."""
        return self._file.xFileSize()

    def read(self, offset: int, bytes_max: int) -> bytes:
        """The bytes from there, fewer at the end."""
        end = min(offset + bytes_max, self.size())
        return b"".join(
            self._file.xRead(min(_CALL_BYTES, end - start), start) for start in range(offset, end, _CALL_BYTES)
        )

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes there; durable only after `sync`."""
        for start in range(0, len(data), _CALL_BYTES):
            self._file.xWrite(data[start : start + _CALL_BYTES], offset + start)

    def sync(self) -> None:
        """Make content and name durable."""
        self._file.xSync(apsw.SQLITE_SYNC_FULL)

    def close(self) -> None:
        """Let go of it. Raises nothing: what had to last was made to by `sync`, which says so."""
        with contextlib.suppress(apsw.Error):
            self._file.xClose()


def remove_copy(disk: Disk, path: Path) -> None:
    """Delete a copy beside the database, with the journals that one which was opened may have left behind."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        try:
            disk.remove(f"{path.name}{suffix}")
        except OSError as error:
            log.warning("cannot remove %s%s: %s", path, suffix, error.strerror)


def sync_file(path: Path, vfs: str) -> None:
    """Make a file and its name durable. Raises apsw errors."""
    file = CopyFile(path, vfs)
    try:
        file.sync()
    finally:
        file.close()
