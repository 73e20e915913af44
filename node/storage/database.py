"""Opening SQLite the one way that keeps our promises, and telling a failing disk from a faulty statement."""

from __future__ import annotations

from pathlib import Path

import apsw

from mesh.errors import ConfigError

APPLICATION_ID = 0x524D4553
"""`RMES` in the file's header: no other program's database is taken for ours, nor ours for theirs."""

META_ORIGIN = "engine.origin"
META_HLC = "engine.hlc"
META_CLEAN = "engine.clean"
"""Names in `meta`: which origin is this node's own, its last stamp, and whether it was left in order."""

BUSY_TIMEOUT_MS = 5_000
"""Our own two connections never wait long for each other; a backup tool might hold a lock for a moment."""
STATEMENT_CACHE = 256
"""Prepared statements per connection: about twelve per replicated table, and what the work layer asks."""
PAGE_CACHE_KIB = 32_768
_LOG_CHUNK_BYTES = 1 << 16
"""SQLite's own VFS takes less than 128 KiB in one call."""

DISK_ERRORS = (
    apsw.IOError,
    apsw.FullError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.CantOpenError,
    apsw.ReadOnlyError,
    apsw.PermissionsError,
    apsw.ProtocolError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.NoMemError,
)
"""What says that the database cannot be reached or trusted now. Everything else that apsw raises is a bug of ours."""

DAMAGE = (apsw.CorruptError, apsw.NotADBError)
"""Of these, what says that the file itself is broken."""


class DamagedError(ConfigError):
    """The database is no database any more, or not a sound one. It was left as it is."""


# synchronous=FULL syncs the log at every commit: an acknowledged write survives a power cut. Checkpoints are explicit:
# an automatic one runs inside COMMIT, and its failure would make the outcome of a good commit unknown.
_SETTINGS: tuple[tuple[str, str | int], ...] = (
    ("journal_mode", "wal"),
    ("synchronous", 2),
    ("wal_autocheckpoint", 0),
    ("foreign_keys", 0),
    ("busy_timeout", BUSY_TIMEOUT_MS),
    ("cache_size", -PAGE_CACHE_KIB),
    ("temp_store", 2),
    ("trusted_schema", 0),
)


def open_connection(path: Path, vfs: str, *, read_only: bool = False, exclusive: bool = False) -> apsw.Connection:
    """A connection with every setting applied and read back.

    `exclusive` keeps the file to this connection, which a VFS without shared memory needs. ConfigError when the file
    cannot be opened or is no database; what exists is left as it is.
    """
    try:
        connection = apsw.Connection(str(path), vfs=vfs or None, statementcachesize=STATEMENT_CACHE)
    except apsw.Error as error:
        raise ConfigError(
            f"cannot open the database {path}: {error}; check that its folder is yours to write"
        ) from None
    try:
        if exclusive:
            connection.pragma("locking_mode", "exclusive")
        _assert_ours(connection, path)
        for name, value in _SETTINGS:
            connection.pragma(name, value)
        if read_only:
            connection.pragma("query_only", 1)
        _assert_settings(connection)
    except DISK_ERRORS as error:
        connection.close(True)
        raise unusable(path, error) from None
    except ConfigError:
        connection.close(True)
        raise
    return connection


def secure_log(path: Path, vfs: str) -> None:
    """Write a write-ahead log that a dead process left behind once more, and sync it. Call before opening. apsw errors.

    After a failed sync the kernel counts the pages as written: the next process reads commits out of its memory that
    the drive does not hold, and all that is later appended and synced is lost with them at a power cut. Writing the
    same bytes again can make nothing worse, wherever it ends.
    """
    # Called a super-journal since for a log SQLite's own VFS first looks at the database, which may not exist.
    flags = [apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_READWRITE, 0]
    try:
        log = apsw.VFSFile(vfs, f"{path}-wal", flags)
    except apsw.CantOpenError:
        return
    try:
        if flags[1] & apsw.SQLITE_OPEN_READONLY:
            return  # opening the database will say so
        size = log.xFileSize()
        for offset in range(0, size, _LOG_CHUNK_BYTES):
            log.xWrite(log.xRead(min(_LOG_CHUNK_BYTES, size - offset), offset), offset)
        log.xSync(apsw.SQLITE_SYNC_FULL)
    finally:
        log.xClose()


def _assert_ours(connection: apsw.Connection, path: Path) -> None:
    # Before any setting is applied: the journal mode alone would change another program's file.
    if connection.pragma("application_id") == APPLICATION_ID:
        return
    if connection.execute("SELECT count(*) FROM sqlite_master").get:
        raise ConfigError(f"{path} is a database of another program: give --root another folder. Nothing was changed")


def _assert_settings(connection: apsw.Connection) -> None:
    # A setting may be refused without an error (another journal mode in use, a misspelled name), so each is read back.
    for name, value in _SETTINGS:
        actual = connection.pragma(name)
        assert actual == value, f"SQLite kept {name}={actual!r}, not {value!r}"


_SOUND = {
    apsw.FullError: "free some space, and start again",
    apsw.ReadOnlyError: "make it and its folder writable for this user, and start again",
    apsw.PermissionsError: "make it and its folder writable for this user, and start again",
    apsw.BusyError: "another program holds it: end that, and start again",
    apsw.NoMemError: "this host is out of memory: free some, and start again",
}
"""Errors that say nothing against the file itself: moving it away would only lose what its peers do not have."""


def unusable(path: Path, detail: str | apsw.Error) -> ConfigError:
    """What an operator is told when the database is not reachable; a DamagedError when it is damaged."""
    if isinstance(detail, apsw.IOError) and getattr(detail, "extendedresult", 0) == apsw.SQLITE_IOERR_SHMSIZE:
        detail = apsw.FullError("no room for its index file")  # what a full disk is called before the first write
    remedy = next((text for kind, text in _SOUND.items() if isinstance(detail, kind)), None)
    if remedy is not None:
        return ConfigError(f"the database {path} cannot be used ({detail}). Nothing was changed: {remedy}")
    text = " ".join(str(detail).split())[:200]  # of a broken schema SQLite shows whole statements
    kind = DamagedError if isinstance(detail, (str, *DAMAGE)) else ConfigError
    return kind(
        f"the database {path} cannot be used ({text}). Nothing was changed. If other nodes of this mesh live, move "
        "the file away and start again: the node copies everything from its peers. If not, restore a backup"
    )
