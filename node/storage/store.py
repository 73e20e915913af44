"""The durable store as the rest of a node uses it: write, read, and be told what was committed.

Promises: `write` returns only after the commit that holds its request is durable; callbacks see a commit after it
returned and before any of its callers wakes; a request is applied whole or not at all, and a caller that goes away does
not undo it; every queue is bounded, and local commands go before the rows of peers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import apsw
import trio

from mesh.errors import LimitError, StoreError, UnavailableError
from mesh.hlc import COUNTER_BITS, DRIFT_MAX_MS, HybridClock, PhysicalClock
from mesh.ids import Origin
from mesh.rows import Row
from mesh.stability import Stable, may_adopt
from mesh.tables import Table
from mesh.version_vector import VersionVector
from node.env import Env
from node.storage.adoption import prepare_copy, read_copy
from node.storage.database import DAMAGE, DISK_ERRORS, DamagedError, open_connection
from node.storage.garbage import COLLECT_ROWS_MAX
from node.storage.migrate import Migration, load_migrations
from node.storage.reader import Reader
from node.storage.transaction import Change, Hook, Transaction
from node.storage.writer import Batch, Request, Writer

T = TypeVar("T")

LOCAL_WAITING_MAX = 4_096
"""Local requests that may wait. More would only wait longer: at 5,000 a second this is nearly a second's work."""
REMOTE_ROWS_WAITING_MAX = 20_000
"""Rows of peers that may wait. What is refused is pulled again later."""
BATCH_REQUESTS_MAX = 512
"""Requests in one commit: measured, more gain nothing against the cost of one sync."""
BATCH_REMOTE_ROWS_MAX = 1_000
"""Rows of peers in one commit, so that a bulk pull makes local commands wait for milliseconds only."""
WAL_PAGES_MAX = 4_096
"""Log pages (16 MiB) after which a checkpoint runs between two batches."""
CHECKPOINT_IDLE_S = 2.0
"""A quiet database is checkpointed after this long, once."""
FAILED_AFTER_S = 5.0
"""Commits that fail for this long make the store failed; peers may then take over."""
MAINTENANCE_S = 1.0
RELEASE_ROWS_MAX = 500


@dataclass(frozen=True, slots=True)
class Commit:
    """What one durable commit brought."""

    requests: tuple[tuple[Row, ...], ...]
    """Per request the rows that this node stamped, in sequence: what to push to peers, a request being never split."""
    changes: tuple[Change, ...]
    """Every version that became current, in order."""
    vector_changed: bool


class Store:
    """One node's replicated rows and local tables. Open it, run `run` in a nursery, then write and read."""

    def __init__(
        self,
        env: Env,
        tables: Sequence[Table],
        *,
        node_id: str,
        path: Path,
        migrations: Sequence[Migration] | None = None,
    ) -> None:
        """Without shared memory on its disk, it reads over the writing connection."""
        self._env = env
        self.path = path
        """The database's file."""
        self._single_connection = not env.disk.shared_memory
        self._tables = tuple(tables)
        self._migrations = load_migrations() if migrations is None else migrations
        self.schema = self._migrations[-1].version
        """The newest migration of this release, which an open database has had."""
        self._writer = Writer(
            path,
            env.disk.vfs,
            self._tables,
            self._migrations,
            node_id=node_id,
            entropy=env.entropy,
            exclusive=self._single_connection,
        )
        self._hooks: dict[str, list[Hook]] = {}
        self._commit_callbacks: list[Callable[[Commit], None]] = []
        self._failed_callbacks: list[Callable[[bool], None]] = []
        self._replaced_callbacks: list[Callable[[], Awaitable[None]]] = []
        self._exchange = trio.Lock()
        """Held by whoever commits a batch or exchanges the database: never both at once."""
        self._copies = 0
        self._copied = trio.Event()
        self._readable = trio.Event()
        self._local: deque[Request] = deque()
        self._remote: deque[Request] = deque()
        self._remote_rows = 0
        self._work = trio.Event()
        self._accepting = False
        self._closed = False
        self._failing_since: float | None = None
        self._last_commit_s = 0.0
        self._collected_under: Stable | None = None
        """What was known to be stable when the last garbage of that time went; None while some may be left."""
        self._damage = ""
        self._reader_connection: apsw.Connection | None = None
        self.vector = VersionVector()
        """What the database has seen, as of the last commit that returned. Only read it; it changes in place."""
        self.failed = False
        """Whether commits have been failing for FAILED_AFTER_S."""
        self.physical_clock = PhysicalClock(0, 0.0)
        """Physical time for stamps. Re-anchor it when the peers' median is known."""

    @property
    def origin(self) -> Origin:
        """Who stamps the rows that are written here."""
        return self._writer.ledger.origin

    @property
    def last_dot(self) -> tuple[Origin, int]:
        """The last number that this node gave a row of its own, committed or not; 0 before the first."""
        ledger = self._writer.ledger
        return ledger.origin, ledger.next_seq - 1

    @property
    def stable(self) -> Stable:
        """What this node knows all members to have seen."""
        return self._writer.ledger.stable

    @property
    def has_tombstones(self) -> bool:
        """Whether deleted rows wait to be forgotten."""
        return self._writer.ledger.has_tombstones

    @property
    def hlc(self) -> HybridClock:
        """The clock behind the stamps. It belongs to the writing thread: read `last`, change nothing."""
        return self._writer.ledger.hlc

    def physical_ms(self) -> int:
        """Physical time now, in milliseconds since 1970."""
        return self.physical_clock.now_ms(self._env.clock.monotonic())

    def counters(self) -> Mapping[str, int]:
        """Totals since the start, by name."""
        counters = dict(self._writer.ledger.counters)
        counters["local_waiting"] = len(self._local)
        counters["remote_rows_waiting"] = self._remote_rows
        return counters

    async def open(self) -> None:
        """Open the database and bring it up to date; ConfigError, with nothing changed, when it cannot be used."""
        clock = self._env.clock
        self.physical_clock = PhysicalClock(int(clock.wall() * 1000), clock.monotonic())
        boot_id = self._env.disk.kernel_boot_id()
        now_ms = self.physical_ms()
        self.vector = await self._env.writer_thread.run(lambda: self._writer.open(self._hooks, boot_id, now_ms))
        await self._open_reader()
        self._accepting = True

    async def _open_reader(self) -> None:
        if not self._single_connection:
            vfs = self._env.disk.vfs
            self._reader_connection = await self._env.reader_thread.run(
                lambda: open_connection(self.path, vfs, read_only=True)
            )
        self._readable.set()

    async def _close_reader(self) -> None:
        # Whoever began to read before ends first: calls keep their order on that thread.
        self._readable = trio.Event()
        reader, self._reader_connection = self._reader_connection, None
        if reader is not None:
            await self._env.reader_thread.run(lambda: reader.close(True))

    async def close(self) -> None:
        """Mark the database as left in order and close it. Call it after `run` ended."""
        self._accepting = False
        self._closed = True
        with trio.CancelScope(shield=True):
            await self._close_reader()
            self._readable.set()
            await self._env.writer_thread.run(self._writer.close)

    def abandon(self) -> None:
        """Let go of the database as a process does that is killed: nothing is told to the disk on purpose."""
        self._accepting = False
        self._closed = True
        self._env.reader_thread.close()
        self._env.writer_thread.close()
        if self._reader_connection is not None:
            self._reader_connection.close(True)
        self._writer.abandon()

    def on_commit(self, callback: Callable[[Commit], None]) -> None:
        """Call this in the Trio thread after each commit that changed something. It must not block, nor raise."""
        self._commit_callbacks.append(callback)

    def on_failed(self, callback: Callable[[bool], None]) -> None:
        """Call this when the store becomes failed (True), and when it works again (False)."""
        self._failed_callbacks.append(callback)

    def on_replaced(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Await this when another database took the place of ours, before anything is committed to it.

        It holds every version that was current before, or one that beat it, and there is no `Commit` of what is new.
        It may read, and must not write.
        """
        self._replaced_callbacks.append(callback)

    async def copy_to(self, path: Path) -> None:
        """Copy what is committed into a new file beside the database, see `node.storage.database_copy`.

        Commits and reads go on between its steps. The file is whole when this returns. StoreError when the disk fails,
        and a part of the file may then be left.
        """
        thread = self._env.writer_thread
        async with self._exchange:
            self._copies += 1
        try:
            copy = await thread.run(lambda: self._writer.begin_copy(path))
            try:
                while not await thread.run(copy.step):
                    await trio.lowlevel.checkpoint()
                await thread.run(copy.finish)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await thread.run(copy.abandon)
                raise
        except DISK_ERRORS as error:
            raise StoreError(f"the database cannot be copied: {error}") from error
        finally:
            self._copies -= 1
            self._copied.set()

    async def prepare_copy(self, copy: Path, fn: Callable[[Reader, Reader], T]) -> T:
        """Check a received copy, bring it up to this release, and return what `fn` reads in our database and in it.

        ConfigError when it is damaged, of a newer release, no database of ours, or cannot be opened; StoreError when
        the disk fails.
        """
        vfs, tables, now_ms = self._env.disk.vfs, self._tables, self.physical_ms()
        migrations = self._migrations
        await self._env.reader_thread.run(lambda: prepare_copy(copy, vfs, tables, migrations, now_ms=now_ms))
        return await self.read(lambda ours: read_copy(copy, vfs, tables, lambda theirs: fn(ours, theirs)))

    async def replace_database(self, copy: Path) -> None:
        """Let a copy that `prepare_copy` found good take the database's place, once it knows all that ours does.

        Commits and reads wait meanwhile. This node writes under a new origin afterwards. When it fails the old
        database is in use again: ConfigError when the copy cannot be used, StoreError when the disk fails. When nothing
        can be opened any more, ConfigError, and `is_open` is False.
        """
        while True:
            async with self._exchange:
                if not self._copies:
                    # As of a commit, its outcome is told before a cancellation is looked at.
                    with trio.CancelScope(shield=True):
                        await self._exchange_for(copy)
                    return
                self._copied = trio.Event()
            await self._copied.wait()

    async def _exchange_for(self, copy: Path) -> None:
        await self._close_reader()
        now_ms, disk = self.physical_ms(), self._env.disk
        try:
            self.vector = await self._env.writer_thread.run(lambda: self._writer.replace(copy, disk, now_ms))
        finally:
            if self._writer.is_open:
                await self._open_reader()
            else:
                self._refuse_all()
        for callback in self._replaced_callbacks:
            await callback()

    def _refuse_all(self) -> None:
        self._accepting = False
        waiting = [*self._local, *self._remote]
        self._local.clear()
        self._remote.clear()
        for request in waiting:
            request.error = UnavailableError("this node lost its database and is stopping: try another node")
            request.wake()

    @property
    def is_restored(self) -> bool:
        """Whether the database was found, when it was opened, to be an older one or another one than last time."""
        return self._writer.is_restored

    @property
    def is_open(self) -> bool:
        """Whether there is a database in use."""
        return self._writer.is_open

    def watch(self, table: str, hook: Callable[[Transaction, Row | None, Row], None]) -> None:
        """Call this inside the transaction for every version of this table that becomes current, local or merged.

        It gets the transaction, the version before (None for a new row) and the new one; it may write further rows.
        Register before `open`. When it raises, a local request fails, and a merged row goes to quarantine.
        """
        self._hooks.setdefault(table, []).append(hook)

    async def read(self, fn: Callable[[Reader], T]) -> T:
        """The result of `fn` in one read transaction, on the reading thread. StoreError when the disk fails."""
        if not self._readable.is_set():
            await self._readable.wait()
        thread = self._env.writer_thread if self._single_connection else self._env.reader_thread

        def in_transaction() -> T:
            if self._closed:
                raise UnavailableError("this node has stopped: try another node")
            ledger = self._writer.ledger
            connection = self._reader_connection or ledger.connection
            connection.execute("BEGIN")
            try:
                return fn(Reader(connection, ledger.tables, ledger.origins))
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

        try:
            return await thread.run(in_transaction)
        except DISK_ERRORS as error:
            if isinstance(error, DAMAGE):
                self._note_damage(str(error))
            raise StoreError(f"the database cannot be read: {error}") from error

    def _note_damage(self, damage: str) -> None:
        self._damage = damage
        self._work.set()

    async def write(self, fn: Callable[[Transaction], T], *, remote: bool = False, rows: int = 1) -> T:
        """Run `fn` in a transaction and return its result once that is durable.

        `fn` runs on the writing thread and must have no effect elsewhere. What it raises undoes it, and is raised here.
        `remote` requests merge about `rows` rows of peers and wait behind local ones. LimitError when too many wait
        already. StoreError when the disk fails: whether the request happened is then unknown. Cancelling the caller
        does not withdraw a request that was accepted.
        """
        if not self._accepting:
            raise UnavailableError("this node is stopping, or did not start yet: try another node")
        done = trio.Event()
        request = Request(fn, rows if remote else 0, done.set)
        if remote:
            if self._remote_rows + rows > REMOTE_ROWS_WAITING_MAX and self._remote:
                self._writer.ledger.count("remote_refused")
                raise LimitError(f"{self._remote_rows} rows of peers wait to be stored: pull again in a moment")
            self._remote.append(request)
            self._remote_rows += rows
        else:
            if len(self._local) >= LOCAL_WAITING_MAX:
                self._writer.ledger.count("local_refused")
                raise LimitError(f"{len(self._local)} requests wait for this node's disk: try again in a moment")
            self._local.append(request)
        self._work.set()
        await done.wait()
        if request.error is not None:
            raise request.error
        return cast(T, request.value)

    async def mint_origin(self, reason: str) -> Origin:
        """Begin a new origin, since peers may know rows of ours that this database does not; returns it."""
        self._writer.ledger.mint_wanted = reason
        await self.write(lambda tx: None)
        return self.origin

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit what is waiting and keep the database in shape until cancelled; then commit what was accepted.

        DamagedError when the file turns out to be broken: nothing more can be trusted to it, and the next start sets
        it aside.
        """
        async with trio.open_nursery() as nursery:
            task_status.started()
            nursery.start_soon(self._maintain)
            try:
                while True:
                    await self._work.wait()
                    # The batch ends before a cancellation is looked at: its callers' outcome must be told.
                    with trio.CancelScope(shield=True):
                        await self._commit_waiting()
                    if self._damage:
                        raise DamagedError(
                            f"the database {self.path} is damaged ({self._damage}), so this node ends: start it again, "
                            "and it looks at the whole file"
                        )
            finally:
                self._accepting = False
                with trio.CancelScope(shield=True):
                    while self._local or self._remote:
                        await self._commit_waiting()

    async def _commit_waiting(self) -> None:
        try:
            self._exchange.acquire_nowait()  # nearly always free; waiting for it would give away a turn of the loop
        except trio.WouldBlock:
            await self._exchange.acquire()
        try:
            await self._commit_next()
        finally:
            self._exchange.release()

    async def _commit_next(self) -> None:
        batch = self._collect()
        if not self._local and not self._remote:
            self._work = trio.Event()
        if batch:
            await self._commit(batch)
        if self._writer.wal_pages > WAL_PAGES_MAX and self._writer.is_dirty:
            await self._env.writer_thread.run(self._writer.checkpoint)

    def _collect(self) -> list[Request]:
        batch: list[Request] = []
        while self._local and len(batch) < BATCH_REQUESTS_MAX:
            batch.append(self._local.popleft())
        # At least one remote request each time: local load must not stop replication.
        room = BATCH_REMOTE_ROWS_MAX
        while self._remote and (room == BATCH_REMOTE_ROWS_MAX or self._remote[0].rows <= room):
            request = self._remote.popleft()
            self._remote_rows -= request.rows
            room -= max(1, request.rows)
            batch.append(request)
        return batch

    async def _commit(self, requests: list[Request]) -> None:
        now_ms = self.physical_ms()
        try:
            batch = await self._env.writer_thread.run(lambda: self._writer.run_batch(requests, self.vector, now_ms))
            if batch.committed:  # rumors that are no news must not put off the checkpoint for ever
                self._last_commit_s = self._env.clock.monotonic()
            self._note_outcome(batch)
            self._publish(batch)
            self._damage = self._damage or batch.damage
        except BaseException:
            for request in requests:
                request.error = request.error or StoreError(
                    "this node failed while it stored the request: read it again"
                )
            raise
        finally:
            for request in requests:
                request.wake()

    def _publish(self, batch: Batch) -> None:
        vector_changed = bool(batch.seen.origins())
        if batch.reloaded is not None:
            vector_changed = vector_changed or batch.reloaded != self.vector
            self.vector = batch.reloaded
        self.vector.join(batch.seen)
        if any(change.after.deleted for change in batch.changes):
            self._collected_under = None
        if vector_changed or batch.changes:
            commit = Commit(tuple(batch.written), tuple(batch.changes), vector_changed)
            for callback in self._commit_callbacks:
                callback(commit)

    def _note_outcome(self, batch: Batch) -> None:
        if not batch.failure and not batch.committed:
            return
        now_s = self._env.clock.monotonic()
        if batch.committed:
            self._failing_since = None
        elif self._failing_since is None:
            self._failing_since = now_s
        failed = self._failing_since is not None and now_s - self._failing_since >= FAILED_AFTER_S
        if failed != self.failed:
            self.failed = failed
            for callback in self._failed_callbacks:
                callback(failed)

    async def _maintain(self) -> None:
        await self._submit_own(self._release)  # rows of tables that only this release knows
        while True:
            await self._env.clock.sleep(MAINTENANCE_S)
            if self._failing_since is not None:
                await self._submit_own(self._writer.probe)
            elif self._writer.is_dirty and self._env.clock.monotonic() - self._last_commit_s >= CHECKPOINT_IDLE_S:
                await self._env.writer_thread.run(self._writer.checkpoint)
            if self._writer.ledger.future_parked:
                await self._submit_own(self._release)
            if self.has_garbage:
                await self._submit_own(self._forget_some)

    async def _submit_own(self, fn: Callable[[Transaction], None]) -> None:
        try:
            await self.write(fn, remote=True)
        except (StoreError, LimitError, UnavailableError):
            # The outcome was noted where the batch failed, and the next round tries again.
            self._writer.ledger.count("maintenance_failures")

    @property
    def has_garbage(self) -> bool:
        """Whether rows wait to be dropped that other nodes may have dropped already."""
        # A replica that still lacks rows may lack one that was made anew over a tombstone: it forgets nothing yet.
        return (
            self.has_tombstones
            and self._collected_under is not self.stable
            and self.vector.includes(self.stable.complete)
        )

    def _forget_some(self, transaction: Transaction) -> None:
        stable = self.stable
        self._collected_under = stable if transaction.collect_garbage() < COLLECT_ROWS_MAX else None

    def may_adopt(self, stable: Stable) -> bool:
        """Whether this replica may forget what a peer's knowledge allows to forget; see `mesh.stability.may_adopt`."""
        return may_adopt(self.vector, self.origin, self.stable.news_in(stable))

    def lacks(self, vector: VersionVector) -> bool:
        """Whether a peer's vector covers something that was not seen here."""
        return not self.vector.includes(vector.without(self.stable.collapsed))

    async def adopt(self, stable: Stable) -> None:
        """Know what a peer knows to be stable, if we may, and begin to forget what that allows to forget."""
        if self.may_adopt(stable) and not self.stable.includes(stable):
            await self.write(lambda tx: tx.adopt(stable), remote=True)

    def _release(self, transaction: Transaction) -> None:
        ledger = self._writer.ledger
        hlc_max = (ledger.now_ms + DRIFT_MAX_MS) << COUNTER_BITS
        names = [table.name for table in self._tables]
        released = transaction.release_parked(names, hlc_max=hlc_max, rows_max=RELEASE_ROWS_MAX)
        ((waiting,),) = transaction.sql("SELECT count(*) FROM quarantine WHERE reason = 'future-stamp'")
        # After an upgrade there may be more rows of a new table than one round releases.
        ledger.future_parked = waiting > 0 or released == RELEASE_ROWS_MAX
