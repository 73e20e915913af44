"""Making another node's database one's own, so that nothing which this node knew is lost.

What comes in is a copy (`node.storage.database_copy`) that was received whole. It gets this node's local tables, and
every version that this node has seen and the copy has not: rows of its own that no peer has, and rows of others for
which this node may be the last replica. Only then may it take the place of the old database.

The vector of the result covers what either covered, and is honest: a version that only the old one covered is either
merged here, or had been beaten by one that the copy covers. The origin is left out, so that the next opening mints one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import apsw

from mesh.errors import ConfigError, StoreError
from mesh.hlc import HybridClock
from mesh.ids import Origin
from mesh.rows import Row
from mesh.stability import Stable
from mesh.tables import Table
from mesh.version_vector import VersionVector
from node.storage.database import DAMAGE, DISK_ERRORS, META_CLEAN, META_HLC, META_ORIGIN, open_connection, unusable
from node.storage.database_copy import local_tables
from node.storage.garbage import has_tombstones, is_orphan
from node.storage.migrate import Migration, check_migrations
from node.storage.origins import OriginTable
from node.storage.reader import META_STABLE, PullCursor, Reader
from node.storage.schema import table_sql
from node.storage.schema_changes import upgrade
from node.storage.transaction import Arrival, Ledger, Transaction
from node.storage.vectors import load_vector, remove_dots, store_vector

T = TypeVar("T")

MERGE_ROWS_MAX = 1_000


def adopt(path: Path, vfs: str, old: Ledger, tables: Sequence[Table]) -> None:
    """Make the copy at `path` a database of this node that knows all that `old` does, in one synced file.

    Runs on the writing thread between two batches, after `prepare_copy`, with the same errors, and ConfigError when the
    copy is older than what this node has forgotten. `old` is left as it is.
    """
    with _opened(path, vfs) as connection:
        connection.execute("BEGIN IMMEDIATE")
        _take_local_tables(connection, old.connection, tables)
        hlc = _hlc_of_both(connection, old)
        _check_remembers(connection, old)
        stable = _take_meta(connection, old.connection)
        _merge(connection, old, hlc, stable, tables)
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (META_HLC, str(hlc.last).encode()))
        connection.execute("INSERT INTO meta VALUES (?, ?)", (META_CLEAN, b"1"))  # it was checked a moment ago
        connection.execute("COMMIT")
        connection.pragma("journal_mode", "delete")  # one file, that a rename can move


def prepare_copy(
    path: Path, vfs: str, tables: Sequence[Table], migrations: Sequence[Migration], *, now_ms: int
) -> None:
    """Read a received copy once, and bring it up to this release. It may be of an older one.

    ConfigError when it is damaged, of a newer release, no database of ours, or cannot be opened; StoreError when the
    disk fails.
    """
    with _opened(path, vfs) as connection:
        problem = connection.execute("PRAGMA quick_check(1)").get
        if problem != "ok":
            raise unusable(path, str(problem).splitlines()[-1])
        check_migrations(connection, migrations)
        connection.execute("BEGIN IMMEDIATE")
        upgrade(connection, tables, migrations, now_ms=now_ms)
        connection.execute("COMMIT")


def read_copy(path: Path, vfs: str, tables: Sequence[Table], fn: Callable[[Reader], T]) -> T:
    """The result of `fn` on a copy that `prepare_copy` found good, with the same errors."""
    with _opened(path, vfs) as connection:
        origins = OriginTable()
        origins.load(connection)
        return fn(Reader(connection, {table.name: table_sql(table) for table in tables}, origins))


@contextmanager
def _opened(path: Path, vfs: str) -> Iterator[apsw.Connection]:
    try:
        connection = open_connection(path, vfs, exclusive=True)
        try:
            yield connection
        finally:
            connection.close(True)  # moves the log into the file, and may fail, too
    except DISK_ERRORS as error:
        if isinstance(error, DAMAGE):
            raise unusable(path, error) from None
        raise StoreError(f"the received database cannot be used ({error}): it is tried again") from error


def _take_local_tables(connection: apsw.Connection, old: apsw.Connection, tables: Sequence[Table]) -> None:
    for name in local_tables(old, tables):
        connection.execute(f'DELETE FROM "{name}"')  # of a copy that was not made as it should be
        for row in old.execute(f'SELECT * FROM "{name}"'):
            connection.execute(f'INSERT INTO "{name}" VALUES ({", ".join("?" * len(row))})', row)


def _hlc_of_both(connection: apsw.Connection, old: Ledger) -> HybridClock:
    """A clock whose stamps come after those of either database, if the other's is not too far ahead of our time."""
    hlc = HybridClock(old.hlc.last)
    theirs = connection.execute("SELECT value FROM meta WHERE name = ?", (META_HLC,)).get
    if isinstance(theirs, bytes) and theirs.isdigit():
        hlc.observe(int(theirs), old.now_ms)
    return hlc


def _is_left_behind(ledger: Ledger, old: Ledger, row: Row) -> bool:
    """Whether we wrote this to something that was in our old database and is not in this one.

    What was in neither is another matter: a parent may come later than its child.
    """
    sql = ledger.tables.get(row.table)
    if sql is None or sql.table.parent is None or row.origin.node != old.origin.node:
        return False
    name = row.text(sql.table.parent.column)
    return is_orphan(ledger, sql, row.namespace, name) and not is_orphan(old, sql, row.namespace, name)


def _check_remembers(connection: apsw.Connection, old: Ledger) -> None:
    """ConfigError when the copy may hold rows whose deletion this node has seen, and forgotten."""
    origins = OriginTable()
    origins.load(connection)
    seen = load_vector(connection, origins)
    seen.join(_stable(connection).collapsed)
    if not (seen.includes(old.stable.complete) and seen.includes(old.stable.collapsed)):
        raise ConfigError("the snapshot is older than deletions that this node remembers no more")


def _take_meta(connection: apsw.Connection, old: apsw.Connection) -> Stable:
    stable = _stable(connection).joined(_stable(old))  # facts about the mesh, whoever learned them
    connection.execute("DELETE FROM meta")
    for name, value in old.execute("SELECT name, value FROM meta"):
        if name not in (META_ORIGIN, META_CLEAN):  # a database that has no origin gets a new one when it is opened
            connection.execute("INSERT INTO meta VALUES (?, ?)", (name, value))
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (META_STABLE, stable.to_wire()))
    return stable


def _stable(connection: apsw.Connection) -> Stable:
    data = connection.execute("SELECT value FROM meta WHERE name = ?", (META_STABLE,)).get
    return Stable.from_wire(data) if isinstance(data, bytes) else Stable()


def _parked(connection: apsw.Connection, origins: OriginTable) -> set[tuple[Origin, int]]:
    """The dots of all versions that this database has put aside."""
    return {(origins.origin(oid), seq) for oid, seq in connection.execute("SELECT oid, seq FROM quarantine")}


def _take_quarantine(connection: apsw.Connection, old: Ledger, origins: OriginTable, vector: VersionVector) -> None:
    """Take along what is put aside and the copy has not seen, as it is.

    It was put aside by hooks as well, and none of them judges here: merged anew, a poisoned row would become current.
    """
    for oid, seq, *rest in old.connection.execute("SELECT * FROM quarantine ORDER BY rowid"):
        origin = old.origins.origin(oid)
        if not vector.covers(origin, seq):
            marks = ", ".join("?" * (2 + len(rest)))
            number = origins.intern(connection, origin)
            connection.execute(f"INSERT OR IGNORE INTO quarantine VALUES ({marks})", (number, seq, *rest))


def _merge(connection: apsw.Connection, old: Ledger, hlc: HybridClock, stable: Stable, tables: Sequence[Table]) -> None:
    """Merge every version that the old database has seen and this one has not, by the order that decides any merge.

    What the donor has put aside it has not seen in that sense: here it may be current.
    """
    origins = OriginTable()
    origins.load(connection)
    ledger = Ledger(
        connection=connection,
        tables={table.name: table_sql(table) for table in tables},
        origins=origins,
        hlc=hlc,
        now_ms=old.now_ms,
        stable=stable,
    )
    ledger.has_tombstones = has_tombstones(ledger)
    remove_dots(connection, origins, stable.collapsed)
    vector = load_vector(connection, origins)
    reader = Reader(old.connection, old.tables, old.origins)
    parked_here = _parked(old.connection, old.origins)
    parked_there = _parked(connection, origins) - parked_here
    _take_quarantine(connection, old, origins, vector)
    aside = VersionVector()
    for origin, seq in parked_there:
        aside.add(origin, seq, seq)
    seen_there = vector.copy()
    seen_there.join(stable.collapsed)
    applied = seen_there.without(aside)
    seen = VersionVector()
    cursor: PullCursor | None = None
    waiting: list[Row] = []
    while True:
        chunk = reader.rows_missing_from(applied, rows_max=MERGE_ROWS_MAX, after=cursor)
        transaction = Transaction(ledger)  # one for each chunk, since it remembers all that it merged
        for row in chunk.rows:
            if (row.origin, row.seq) in parked_here:
                continue
            if (row.origin, row.seq) in parked_there:
                connection.execute(
                    "DELETE FROM quarantine WHERE oid = ? AND seq = ?", (origins.number(row.origin), row.seq)
                )
            if _is_left_behind(ledger, old, row):
                waiting.append(row)  # what it belongs to may come yet, from a later origin
            else:
                transaction.merge(row, Arrival.CARRIED)
        seen.join(transaction.finish()[2])
        if chunk.vector is not None:
            seen.join(chunk.vector.without(stable.collapsed))
            break
        cursor = chunk.cursor
    transaction = Transaction(ledger)
    for row in waiting:
        # What we wrote to something that the mesh has deleted, and forgotten, since, stays behind.
        if not _is_left_behind(ledger, old, row):
            transaction.merge(row, Arrival.CARRIED)
    store_vector(connection, origins, vector, VersionVector(vector.missing_from(seen)))
