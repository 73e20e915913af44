"""The writing connection: opens and checks the database, runs batches of requests, and checkpoints.

Every method runs on the writing thread. A batch is one transaction with a savepoint per request and one COMMIT. When
the COMMIT fails its outcome is unknown; then all that this object remembers is read again from the database.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import apsw

from mesh.errors import StoreError
from mesh.hlc import HybridClock
from mesh.ids import Origin
from mesh.rows import Row
from mesh.tables import Table
from mesh.version_vector import VersionVector
from node.env import Disk
from node.storage import garbage
from node.storage.adoption import adopt
from node.storage.database import (
    APPLICATION_ID,
    DAMAGE,
    DISK_ERRORS,
    META_CLEAN,
    META_HLC,
    META_ORIGIN,
    open_connection,
    secure_log,
    unusable,
)
from node.storage.database_copy import DatabaseCopy, sync_file
from node.storage.migrate import Migration, check_migrations
from node.storage.origins import NO_ORIGIN, Marker, MarkerFile, OriginTable
from node.storage.reader import Reader
from node.storage.schema import table_sql
from node.storage.schema_changes import upgrade
from node.storage.transaction import Change, Hook, Ledger, Transaction
from node.storage.vectors import load_vector, store_vector

_META_BOOT = "engine.kernel-boot"
_META_PROBE = "engine.probe"


@dataclass(eq=False, slots=True)
class Request:
    """A function waiting for its transaction, and what became of it."""

    fn: Callable[[Transaction], Any]
    rows: int
    """How many rows of peers it merges, 0 for a local command."""
    wake: Callable[[], None]
    value: Any = None
    error: Exception | None = None


@dataclass(slots=True)
class Batch:
    """What one COMMIT made durable, if there was anything."""

    written: list[tuple[Row, ...]] = field(default_factory=list)
    """Rows that this node stamped, per request."""
    changes: list[Change] = field(default_factory=list)
    seen: VersionVector = field(default_factory=VersionVector)
    """What the vector gained."""
    reloaded: VersionVector | None = None
    """The whole vector, when it was read again from the database after a failure, or dots of it were collapsed."""
    failure: str = ""
    """Why the batch failed as a whole; empty when it did not."""
    damage: str = ""
    """What SQLite found wrong with the file, if that is why."""
    committed: bool = False
    """Whether something was written: a batch without a change succeeds on any disk."""


class Writer:
    """The one writing connection of a database."""

    def __init__(
        self,
        path: Path,
        vfs: str,
        tables: Sequence[Table],
        migrations: Sequence[Migration],
        *,
        node_id: str,
        entropy: Callable[[int], bytes],
        exclusive: bool,
    ) -> None:
        self._path = path
        self._vfs = vfs
        self._tables = tables
        self._migrations = migrations
        self._node_id = node_id
        self._entropy = entropy
        self._exclusive = exclusive
        self._marker = MarkerFile(path, vfs)
        self._must_reload = False
        self._connection: apsw.Connection | None = None
        self._copies: list[DatabaseCopy] = []
        self.is_open = False
        self.is_restored = False
        """Whether the database was found to be older than what was last written here, or another one."""
        self.wal_pages = 0
        """Pages in the write-ahead log, as of the last commit."""
        self.is_dirty = False
        """Whether anything was committed since the last checkpoint."""

    def open(self, hooks: dict[str, list[Hook]], kernel_boot_id: str, now_ms: int) -> VersionVector:
        """Open, check and upgrade the database, settle who we are, and return what it has seen. Raises ConfigError."""
        try:
            secure_log(self._path, self._vfs)
        except DISK_ERRORS as error:
            raise unusable(self._path, error) from None
        connection = self._connection = open_connection(self._path, self._vfs, exclusive=self._exclusive)
        try:
            self._check(connection)
            connection.execute("BEGIN IMMEDIATE")
            upgrade(connection, self._tables, self._migrations, now_ms=now_ms)
            connection.pragma("application_id", APPLICATION_ID)
            connection.execute("COMMIT")
            connection.set_wal_hook(self._on_wal)
            self.ledger = Ledger(
                connection=connection,
                tables={table.name: table_sql(table) for table in self._tables},
                origins=OriginTable(),
                hlc=HybridClock(),
                hooks=hooks,
                now_ms=now_ms,
            )
            vector = self._settle(kernel_boot_id)
            self.is_open = True
            return vector
        except DISK_ERRORS as error:
            connection.close(True)
            raise unusable(self._path, error) from None
        except BaseException:
            connection.close(True)  # rolls back: nothing half-written
            raise

    def _on_wal(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self.wal_pages = pages
        self.is_dirty = True
        return 0

    def _check(self, connection: apsw.Connection) -> None:
        if not connection.table_exists("main", "schema_migrations"):
            return
        check_migrations(connection, self._migrations)
        # Only a process that ended badly can have left damage, and reading the whole file takes its time.
        if connection.execute("SELECT value FROM meta WHERE name = ?", (META_CLEAN,)).get != b"1":
            problem = connection.execute("PRAGMA quick_check(1)").get
            if problem != "ok":
                raise unusable(self._path, str(problem).splitlines()[-1])

    def _settle(self, kernel_boot_id: str) -> VersionVector:
        # Who are we? The same as last time, unless the database may have forgotten what it once told others.
        ledger = self.ledger
        vector = self._reload()
        reason = self._doubt(vector, kernel_boot_id)
        ledger.connection.execute("BEGIN IMMEDIATE")
        if reason:
            self._mint(reason)
        self._set_meta(_META_BOOT, kernel_boot_id.encode())
        self._set_meta(META_CLEAN, b"0")
        ledger.connection.execute("COMMIT")
        if reason:
            self._write_marker()
        due = ledger.connection.execute("SELECT count(*) FROM quarantine WHERE reason = 'future-stamp'").get
        ledger.future_parked = bool(due)
        return vector

    def _doubt(self, vector: VersionVector, kernel_boot_id: str) -> str:
        ledger = self.ledger
        if not ledger.origin.incarnation:
            return "a new database"
        if ledger.origin.node != self._node_id:
            return "the node has another id"
        marker = self._marker.read()
        if marker is None or marker.incarnation != ledger.origin.incarnation:
            self.is_restored = True
            return "the database was copied from elsewhere or restored"
        if vector.head(ledger.origin) < marker.head:
            self.is_restored = True
            return "the database is older than this node's last state"
        clean = self._get_meta(META_CLEAN) == b"1"
        if not clean and self._get_meta(_META_BOOT) != kernel_boot_id.encode():
            # A killed process leaves its writes in the kernel; a kernel that went down may have taken some along.
            return "the host went down while the node ran"
        return ""

    def _mint(self, reason: str) -> None:
        # Inside a transaction. The next sequence number of a fresh origin is 1.
        ledger = self.ledger
        incarnation = (int.from_bytes(self._entropy(8), "big") >> 1) or 1
        ledger.origin = Origin(self._node_id, incarnation)
        ledger.next_seq = 1
        oid = ledger.origins.intern(ledger.connection, ledger.origin)
        self._set_meta(META_ORIGIN, str(oid).encode())
        self._set_meta("engine.origin-reason", reason.encode())
        ledger.count("origins_minted")

    def _reload(self) -> VersionVector:
        # Read again what memory only mirrors.
        ledger = self.ledger
        ledger.origins.load(ledger.connection)
        vector = load_vector(ledger.connection, ledger.origins)
        reader = Reader(ledger.connection, ledger.tables, ledger.origins)
        ledger.stable = reader.stable()
        ledger.has_tombstones = garbage.has_tombstones(ledger)
        own = self._get_meta(META_ORIGIN)
        ledger.origin = ledger.origins.origin(int(own)) if own else NO_ORIGIN
        ledger.next_seq = vector.head(ledger.origin) + 1
        stored_hlc = int(self._get_meta(META_HLC) or b"0")
        if stored_hlc > ledger.hlc.last:
            ledger.hlc = HybridClock(stored_hlc)
        self._must_reload = False
        return vector

    def _get_meta(self, name: str) -> bytes | None:
        value = self.ledger.connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).get
        assert value is None or isinstance(value, bytes), (name, value)
        return value

    def _set_meta(self, name: str, value: bytes) -> None:
        self.ledger.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def run_batch(self, requests: Sequence[Request], vector: VersionVector, now_ms: int) -> Batch:
        """Run these requests in one transaction. `vector` is what the database has seen; it is only read.

        A request that raises is undone alone. A failing disk fails the whole batch: see `Batch.failure`.
        """
        ledger = self.ledger
        ledger.now_ms = now_ms
        batch = Batch()
        try:
            if self._must_reload:
                self._roll_back()  # the failed batch may have left its transaction open
                batch.reloaded = vector = self._reload()
            self._transact(requests, vector, batch)
        except DISK_ERRORS as error:
            failure = f"{type(error).__name__}: {error}"
            damage = str(error) if isinstance(error, DAMAGE) else ""
            return self._fail(requests, failure, batch.reloaded, damage)
        except BaseException:
            self._roll_back()
            raise
        finally:
            ledger.rows.clear()
        if batch.written:
            ledger.count("rows_written", sum(map(len, batch.written)))
        ledger.count("requests", len(requests))
        return batch

    def _transact(self, requests: Sequence[Request], vector: VersionVector, batch: Batch) -> None:
        ledger = self.ledger
        execute = ledger.connection.execute
        changes_before = ledger.connection.total_changes()
        execute("BEGIN IMMEDIATE")
        minted = ledger.mint_wanted
        if minted:
            self._mint(minted)
        collapsed = ledger.stable.collapsed
        for request in requests:
            self._run_request(request, batch)
        if ledger.stable.collapsed != collapsed:
            vector = batch.reloaded = vector.without(ledger.stable.collapsed)
        batch.seen = VersionVector(vector.missing_from(batch.seen))  # most rumors and pulls tell of what is here
        if ledger.connection.total_changes() == changes_before and not batch.seen.origins():
            execute("ROLLBACK")  # nothing to make durable: no write without a change
            return
        store_vector(ledger.connection, ledger.origins, vector, batch.seen)
        if batch.written:
            # Stamps must go on rising after a restart on a host whose clock begins in 1970.
            self._set_meta(META_HLC, str(ledger.hlc.last).encode())
        execute("COMMIT")
        batch.committed = True
        ledger.count("commits")
        if minted:
            if ledger.mint_wanted == minted:
                ledger.mint_wanted = ""
            self._write_marker()

    def _run_request(self, request: Request, batch: Batch) -> None:
        ledger = self.ledger
        execute = ledger.connection.execute
        first_seq, stable = ledger.next_seq, ledger.stable
        execute("SAVEPOINT request")
        transaction = Transaction(ledger)
        try:
            request.value = request.fn(transaction)
        except DISK_ERRORS:
            raise
        except Exception as error:
            request.error = error
            # SQLite undoes the whole transaction by itself for some disk errors; then there is no savepoint either.
            if not ledger.connection.in_transaction:
                raise apsw.IOError(f"the transaction ended by itself: {error}") from error
            execute("ROLLBACK TO request")
            execute("RELEASE request")
            ledger.rows.clear()
            ledger.next_seq, ledger.stable = first_seq, stable
            ledger.origins.load(ledger.connection)
            return
        execute("RELEASE request")
        written, changes, seen = transaction.finish()
        if written:
            batch.written.append(written)
        batch.changes.extend(changes)
        batch.seen.join(seen)

    def _fail(self, requests: Sequence[Request], failure: str, reloaded: VersionVector | None, damage: str) -> Batch:
        # After a failed COMMIT nobody knows whether it happened. What is on disk is the truth; ask it.
        self.ledger.count("commit_failures")
        for request in requests:
            if request.error is None or isinstance(request.error, DISK_ERRORS):
                request.error = StoreError(
                    f"the database could not be written ({failure}); whether this request happened is unknown: "
                    "read it again before repeating it"
                )
        self._must_reload = True
        try:
            self._roll_back()
            reloaded = self._reload()
        except DISK_ERRORS:
            self.ledger.count("reload_failures")  # the next batch begins with another try
        return Batch(failure=failure, reloaded=reloaded, damage=damage)

    def _roll_back(self) -> None:
        if self.ledger.connection.in_transaction:
            self.ledger.connection.execute("ROLLBACK")

    def probe(self, transaction: Transaction) -> None:
        """A request that writes something small, to learn whether the disk works again."""
        transaction.meta_set(_META_PROBE, str(self.ledger.now_ms).encode())

    def checkpoint(self) -> bool:
        """Move the log into the database and sync it, without waiting for readers; False when the disk failed."""
        try:
            self.ledger.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            self._write_marker()
        except DISK_ERRORS:
            # Nothing is lost: the log still holds everything, and commits go on.
            self.ledger.count("checkpoint_failures")
            return False
        self.is_dirty = False
        self.ledger.count("checkpoints")
        return True

    def _write_marker(self) -> None:
        # Between transactions every assigned number is committed.
        try:
            self._marker.write(Marker(self.ledger.origin.incarnation, self.ledger.next_seq - 1))
        except (*DISK_ERRORS, apsw.Error):
            # An old marker is a lower bound still, and one that names another incarnation only makes a new origin.
            self.ledger.count("marker_failures")

    def begin_copy(self, path: Path) -> DatabaseCopy:
        """Begin a copy of what is committed, in a new file. Raises apsw errors."""
        copy = DatabaseCopy(self.ledger.connection, path, self._vfs, self._tables)
        self._copies = [*(each for each in self._copies if not each.is_over), copy]
        return copy

    def replace(self, copy: Path, disk: Disk, now_ms: int) -> VersionVector:
        """Let a received copy take this database's place under a new origin, once it knows all that this one does.

        Nothing else may have the database open. Returns the new vector. When it fails the old database is in use
        again, whole: StoreError or ConfigError as of `adopt`, or StoreError when the disk fails. When not even that one
        can be opened again, ConfigError, and `is_open` is False.

        A power cut at any step leaves one of the two: until the rename the old one is complete without its log, which
        is gone for good before, and from then on the new one, which was synced before.
        """
        ledger = self.ledger
        if self._must_reload:
            raise StoreError("the local store fails: its database is replaced when it works again")
        ledger.now_ms = now_ms
        try:
            adopt(copy, self._vfs, ledger, self._tables)
            sync_file(copy, self._vfs)
            ledger.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            self.is_open = False
            ledger.connection.close()
            self._take_place(copy, disk)
        except (*DISK_ERRORS, OSError) as error:
            if self.is_open:
                raise StoreError(f"the received database cannot be used ({error}): the old one stays") from error
            self._reopen(disk.kernel_boot_id(), now_ms)
            raise StoreError(f"the database cannot be replaced ({error}): the old one stays") from error
        return self._reopen(disk.kernel_boot_id(), now_ms)

    def _take_place(self, copy: Path, disk: Disk) -> None:
        # Closing removed the log, or failed to move it into the database. Beside the new database it would be poison.
        name = self._path.name
        if disk.exists(f"{name}-wal"):
            raise OSError("its log could not be moved into it")
        disk.remove(f"{name}-shm")
        disk.rename(copy.name, name)

    def _reopen(self, kernel_boot_id: str, now_ms: int) -> VersionVector:
        before = self.ledger
        try:
            before.connection.close(True)
            vector = self.open(before.hooks, kernel_boot_id, now_ms)
        except DISK_ERRORS as error:
            raise unusable(self._path, error) from None
        self.ledger.counters = before.counters
        self.ledger.hlc = max(self.ledger.hlc, before.hlc, key=lambda clock: clock.last)
        return vector

    def close(self) -> None:
        """Note that the database was left in order, and close it."""
        ledger = self.ledger
        if not self.is_open:
            return
        self.is_open = False
        try:
            self._roll_back()
            if not self._must_reload:
                self._set_meta(META_CLEAN, b"1")
                self.checkpoint()
        except DISK_ERRORS:
            ledger.count("commit_failures")  # the next start then checks what it finds
        finally:
            ledger.connection.close(True)

    def abandon(self) -> None:
        """Close the connections without a word to the database, as the kernel does for a killed process."""
        closings: list[Callable[[], None]] = [copy.abandon for copy in self._copies if not copy.is_over]
        if self._connection is not None:
            closings.append(partial(self._connection.close, True))
        for close in closings:
            # Whatever the disk says to that; what a VFS in Python raises comes out of apsw as a SystemError.
            with suppress(*DISK_ERRORS, SystemError):
                close()
