"""What a request may do: write rows, merge rows of peers, and note what was seen, all of it or nothing.

A request runs inside a savepoint of its batch's transaction. It must have no effect outside the database, since the
batch may still fail. Everything here runs on the writing thread.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

import apsw
import msgspec

from mesh.errors import UnavailableError
from mesh.hlc import HybridClock
from mesh.ids import Origin
from mesh.registers import beats
from mesh.replica import REASON_FUTURE, REASON_REJECTED, Outcome, Stamp, Verdict, judge, successor
from mesh.row_codec import CHUNK_LIMITS, decode_rows, encode_rows, encode_values, row_digest
from mesh.rows import Row
from mesh.stability import Stable
from mesh.tables import Value
from mesh.version_vector import VersionVector
from node.storage.garbage import adopt, collect, drop_unsent, forget, is_garbage
from node.storage.origins import NO_ORIGIN, OriginTable
from node.storage.reader import Reader, read_row
from node.storage.schema import TableSql

log = logging.getLogger(__name__)

Hook = Callable[["Transaction", Row | None, Row], None]
"""Called with the version before (None for a new row) and the one that became current."""

HOOK_DEPTH_MAX = 8
"""Hooks that write rows call hooks; deeper than this they chase each other."""
QUARANTINE_ROWS_MAX = 10_000
"""The oldest go first. What is lost by that, verification against a peer finds again."""
PARKED_COUNTER = "parked."
"""Prefix of the counters of what was put aside, one for each reason."""
PARKED_TOLD_EVERY_MS = 60_000
"""A flood of versions to put aside is one warning a minute for each reason; the counters have the rest."""
ROWS_REMEMBERED_MAX = 4_096
"""Rows that a batch need not read twice. Beyond that it begins to remember anew."""
META_RESERVED = "engine."
"""Prefix of the small local values that belong to the store itself."""


class Arrival(enum.Enum):
    """How a version came here, which says what may be concluded from it."""

    PULLED = "pulled"
    """Behind all that its sender knows to be stable, so both forgot the same."""
    PUSHED = "pushed"
    """By itself."""
    REPAIRED = "repaired"
    """To fill a gap that was found here: it counts although its dot was seen."""
    CARRIED = "carried"
    """From this node's former database, which judged it when it came: it counts likewise, and is in time."""


_NEWS = (Arrival.PULLED, Arrival.PUSHED)


class Change(msgspec.Struct, frozen=True):
    """A version became current by one request. `before` is None for a new row; `local` when this node stamped it."""

    before: Row | None
    after: Row
    local: bool


@dataclass(slots=True)
class Ledger:
    """What the writing thread knows beside the database, and transactions share.

    `origin` and `next_seq` follow the open transaction, and are read again from the database after it failed.
    """

    connection: apsw.Connection
    tables: Mapping[str, TableSql]
    origins: OriginTable
    hlc: HybridClock
    origin: Origin = NO_ORIGIN
    next_seq: int = 1
    now_ms: int = 0
    mint_wanted: str = ""
    """Why the next batch must begin with a new origin; empty when it must not."""
    future_parked: bool = False
    stable: Stable = field(default_factory=Stable)
    """What is known of all members' past. Replaced, never changed."""
    has_tombstones: bool = False
    """Whether there may be any. Without them, which is the normal case, a merge need not look for them."""
    parked_told_ms: dict[str, int] = field(default_factory=dict)
    """When the log last told of a version put aside, by reason."""
    rows: dict[tuple[str, str, str], tuple[int | None, Row | None]] = field(default_factory=dict)
    """Rows as the open transaction sees them, by table, namespace and key. Nobody else writes meanwhile. Emptied when
    the transaction ends, and whenever a part of it is undone."""
    hooks: dict[str, list[Hook]] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter."""
        self.counters[name] = self.counters.get(name, 0) + amount


class Transaction(Reader):
    """One request's view and its writes. Use it only inside the function that it was given to."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger.connection, ledger.tables, ledger.origins)
        self._ledger = ledger
        self._first_seq = ledger.next_seq
        self._stamp: Stamp | None = None
        self._written: list[Row] = []
        self._changes: list[Change] = []
        self._depth = 0
        self._seen = VersionVector()

    @property
    def hlc(self) -> int:
        """The stamp of this request: all its rows carry it."""
        return self._request_stamp().hlc

    @property
    def origin(self) -> Origin:
        """Who stamps what is written here."""
        return self._ledger.origin

    @property
    def now_ms(self) -> int:
        """Physical time of this batch, in milliseconds since 1970: for durations on this node, which stamps are not."""
        return self._ledger.now_ms

    @property
    def stamp_ms(self) -> int:
        """The newest stamp that this replica issued or accepted, in milliseconds. Physical time may be behind it."""
        return max(self._ledger.hlc.last >> 16, self._ledger.now_ms)

    def _request_stamp(self) -> Stamp:
        if self._stamp is None:
            self._stamp = Stamp(self._ledger.origin, self._ledger.hlc.tick(self._ledger.now_ms))
        return self._stamp

    def get(self, table: str, namespace: str, key: str) -> Row | None:
        """The current version of a row, also when it is a tombstone (`row.deleted`); None when it never existed."""
        return self._current(self._tables[table], namespace, key)[1]

    def put(
        self,
        table: str,
        namespace: str,
        key: str,
        values: Mapping[str, Value],
        *,
        rank: int | None = None,
        generation: int | None = None,
        lease_epoch: int | None = None,
        open_lease: bool = False,
        cluster_epoch: int | None = None,
        deleted: bool = False,
    ) -> Row:
        """Write a row: these values over its current ones, metadata that is None as it was (0 in a new row).

        A value of None removes a column. `open_lease` takes this request's stamp as `lease_hlc`. A deletion, and a
        write over a tombstone, begin without the old values; the latter also begins a new generation. Raises
        ConflictError for an immutable row that exists, LimitError for values that cannot be kept. A write that would
        lose to what it replaces is an AssertionError. A row written twice in one request keeps its sequence number.
        """
        ledger = self._ledger
        sql = self._tables[table]
        if ledger.has_tombstones:
            self._forget_for(sql, namespace, key, values)
        rowid, current = self._current(sql, namespace, key)
        ours = current is not None and current.origin == ledger.origin and current.seq >= self._first_seq
        seq = current.seq if ours and current is not None else ledger.next_seq
        row = successor(
            sql.table,
            current,
            self._request_stamp(),
            seq,
            namespace=namespace,
            key=key,
            values=values,
            rank=rank,
            generation=generation,
            lease_epoch=lease_epoch,
            open_lease=open_lease,
            cluster_epoch=cluster_epoch,
            deleted=deleted,
        )
        if not ours:
            ledger.next_seq += 1
        self._written.append(row)
        self._become_current(sql, rowid, current, row, local=True)
        return row

    def merge(self, row: Row, arrival: Arrival = Arrival.PULLED) -> str:
        """Merge a version from a peer and note its dot as seen.

        Returns `applied`, `stale`, `same` or `quarantined`, or `deferred` for a pushed version that only a pull can
        judge; its dot is not seen then. Never raises for what the row says. UnavailableError when the peer knows more
        of our own origin than we do: the next batch begins with a new origin, then try again.
        """
        ledger = self._ledger
        sql = self._tables.get(row.table)
        if ledger.has_tombstones and sql is not None:
            self._forget_for(sql, row.namespace, row.key, row.values)
            if arrival is Arrival.PUSHED and self._meets_tombstone(sql, row):
                ledger.count("rows_deferred")
                return "deferred"
        rowid, current = (None, None) if sql is None else self._current(sql, row.namespace, row.key)
        if current is None and arrival in _NEWS and self._was_forgotten(row):
            self.mark(row.origin, row.seq, row.seq)
            ledger.count("rows_stale")
            return Outcome.STALE.value
        self.mark(row.origin, row.seq, row.seq)
        in_time = ledger.hlc.observe(row.hlc, ledger.now_ms) or arrival is Arrival.CARRIED
        verdict = judge(None if sql is None else sql.table, current, row, in_time=in_time)
        if verdict.outcome is Outcome.APPLIED and sql is not None:
            verdict = self._apply(sql, rowid, current, row, verdict)
        if verdict.parked is not None:
            self._quarantine(verdict.parked, verdict.reason, verdict.detail)
        ledger.count(f"rows_{verdict.outcome.value}")
        return verdict.outcome.value

    def _apply(self, sql: TableSql, rowid: int | None, current: Row | None, row: Row, verdict: Verdict) -> Verdict:
        if row.table not in self._ledger.hooks:
            self._become_current(sql, rowid, current, row, local=False)
            return verdict
        # Gossip spreads a row that trips our own code as fast as any other. It must not stop replication: what the hook
        # did is undone, and the row is put aside where people see it.
        mark = len(self._written), len(self._changes), self._depth, self._ledger.next_seq
        self._connection.execute("SAVEPOINT merge")
        try:
            self._become_current(sql, rowid, current, row, local=False)
        except (apsw.Error, UnavailableError):
            raise
        except Exception as error:
            self._connection.execute("ROLLBACK TO merge")
            self._connection.execute("RELEASE merge")
            self._ledger.rows.clear()
            self._origins.load(self._connection)
            del self._written[mark[0] :], self._changes[mark[1] :]
            self._depth, self._ledger.next_seq = mark[2], mark[3]
            return Verdict(Outcome.QUARANTINED, row, REASON_REJECTED, f"{type(error).__name__}: {error}"[:500])
        self._connection.execute("RELEASE merge")
        return verdict

    def _forget_for(self, sql: TableSql, namespace: str, key: str, values: Mapping[str, Value]) -> None:
        """Drop garbage that a version of this row would meet: on other nodes it may be gone, and all must agree."""
        for each, name in self._row_and_parent(sql, key, values):
            rowid, current = self._current(each, namespace, name)
            if rowid is not None and is_garbage(self._ledger, current):
                forget(self._ledger, each, rowid, namespace, name)

    def _row_and_parent(self, sql: TableSql, key: str, values: Mapping[str, Value]) -> list[tuple[TableSql, str]]:
        pairs = [(sql, key)]
        parent = sql.table.parent
        if parent is not None and parent.table in self._tables:
            name = values.get(parent.column)
            if isinstance(name, str) and name:
                pairs.append((self._tables[parent.table], name))
        return pairs

    def _meets_tombstone(self, sql: TableSql, row: Row) -> bool:
        """Whether a tombstone here would beat this version, or its parent is one.

        Perhaps its writer had forgotten that tombstone. Only a pull brings the knowledge that tells, in front of rows.
        """
        if self._is_seen(row):
            return False
        for each, name in self._row_and_parent(sql, row.key, row.values):
            current = self._current(each, row.namespace, name)[1]
            if current is not None and current.deleted:
                is_own = each is sql and name == row.key
                if not is_own or (not row.deleted and not beats(sql.table.register, row, current)):
                    return True
        return False

    def _was_forgotten(self, row: Row) -> bool:
        """Whether this version, of a row that is not here, was here before: a late copy of what is gone for good."""
        stable = self._ledger.stable
        return stable.collapsed.covers(row.origin, row.seq) or (not stable.settled.is_empty and self._is_seen(row))

    def _is_seen(self, row: Row) -> bool:
        if self._ledger.stable.collapsed.covers(row.origin, row.seq):
            return True
        oid = self._origins.number(row.origin)
        if oid is None:
            return False
        covering = "SELECT 1 FROM vector WHERE oid = ? AND lo <= ? AND hi >= ?"
        return self._connection.execute(covering, (oid, row.seq, row.seq)).get is not None

    def adopt(self, stable: Stable) -> bool:
        """Forget from now on what all members have seen, says a peer, where `mesh.stability.may_adopt` allows it."""
        return adopt(self._ledger, stable)

    def drop_unsent(self, sent: Container[int], vector: VersionVector) -> int:
        """After a whole copy of a peer: drop what it has seen and does not hold; see `garbage.drop_unsent`."""
        return drop_unsent(self._ledger, sent, vector)

    def collect_garbage(self) -> int:
        """Drop some garbage; returns how many tombstones, fewer than COLLECT_ROWS_MAX when none is left."""
        return collect(self._ledger)

    def mark(self, origin: Origin, lo: int, hi: int) -> None:
        """Note these sequence numbers as seen: their rows are here, or were beaten, or never existed."""
        ledger = self._ledger
        if origin == ledger.origin and hi >= ledger.next_seq:
            # Peers were told of rows that this database does not have. Our next rows would carry the same numbers.
            ledger.mint_wanted = "a peer knows more of this node's rows than this node"
            raise UnavailableError(f"{ledger.mint_wanted}: the node takes a new origin; repeat the request")
        collapsed = ledger.stable.collapsed
        if collapsed.head(origin) < lo:
            self._seen.add(origin, lo, hi)
        else:
            self._seen.join(VersionVector({origin: [(lo, hi)]}).without(collapsed))

    def join(self, vector: VersionVector) -> None:
        """Note everything that a peer's vector covers as seen; only with the last chunk of a pull from it."""
        for origin in vector.origins():
            for lo, hi in vector.ranges(origin):
                self.mark(origin, lo, hi)

    def execute(self, statement: str, params: Sequence[Value] = ()) -> None:
        """Change a local table."""
        self._connection.execute(statement, tuple(params))

    def meta_set(self, name: str, value: bytes) -> None:
        """Keep a small local value."""
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def release_parked(self, table_names: Sequence[str], *, hlc_max: int, rows_max: int) -> int:
        """Merge quarantined rows whose time has come, or whose table is known now; returns how many."""
        marks = ", ".join("?" * len(table_names))
        due = self.sql(
            "SELECT rowid, row FROM quarantine WHERE (reason = 'future-stamp' AND hlc <= ?) "
            f"OR (reason = 'unknown-table' AND table_name IN ({marks})) ORDER BY oid, seq LIMIT ?",
            (hlc_max, *table_names, rows_max),
        )
        for rowid, data in due:
            self.execute("DELETE FROM quarantine WHERE rowid = ?", (rowid,))
            for row in decode_rows(data, limits=CHUNK_LIMITS):
                self.merge(row, Arrival.REPAIRED)
        return len(due)

    def finish(self) -> tuple[tuple[Row, ...], tuple[Change, ...], VersionVector]:
        """What the request came to: its own rows in order, the changes it made, and the dots it noted."""
        ledger = self._ledger
        if ledger.next_seq > self._first_seq:
            self._seen.add(ledger.origin, self._first_seq, ledger.next_seq - 1)
        # A row written twice is one version to everybody outside: the last one.
        written = {row.seq: row for row in self._written}
        changes: dict[tuple[str, str, str], Change] = {}
        for change in self._changes:
            name = change.after.table, change.after.namespace, change.after.key
            earlier = changes.get(name)
            changes[name] = change if earlier is None else Change(earlier.before, change.after, change.local)
        return tuple(written.values()), tuple(changes.values()), self._seen

    def _current(self, sql: TableSql, namespace: str, key: str) -> tuple[int | None, Row | None]:
        remembered = self._ledger.rows.get((sql.table.name, namespace, key))
        if remembered is not None:
            return remembered
        found = self._connection.execute(sql.get, (namespace, key)).fetchone()
        if found is None:
            return self._remember(sql, namespace, key, None, None)
        return self._remember(sql, namespace, key, int(found[0]), read_row(sql, found, self._origins))

    def _remember(
        self, sql: TableSql, namespace: str, key: str, rowid: int | None, row: Row | None
    ) -> tuple[int | None, Row | None]:
        rows = self._ledger.rows
        if len(rows) >= ROWS_REMEMBERED_MAX:
            rows.clear()
        known = rows[sql.table.name, namespace, key] = rowid, row
        return known

    def _become_current(self, sql: TableSql, rowid: int | None, before: Row | None, row: Row, *, local: bool) -> None:
        ledger = self._ledger
        values = row.values
        unknown = None
        if not values.keys() <= sql.declared:
            unknown = encode_values({name: value for name, value in values.items() if name not in sql.declared})
        metadata = (
            row.generation,
            row.deleted,
            row.rank,
            row.cluster_epoch,
            row.lease_epoch,
            row.lease_hlc,
            row.hlc,
            row.node,
            self._origins.intern(self._connection, row.origin),
            row.seq,
            *row_digest(row),
        )
        if rowid is None or before is None:
            columns = map(values.get, sql.columns)
            self._connection.execute(sql.insert, (*metadata, *columns, unknown, row.namespace, row.key))
            rowid = self._connection.last_insert_rowid()
        else:
            old = before.values.get
            changed = tuple([name for name in sql.columns if old(name) != values.get(name)])
            self._connection.execute(sql.update(changed), (*metadata, *map(values.get, changed), unknown, rowid))
        self._remember(sql, row.namespace, row.key, rowid, row)
        if row.deleted:
            ledger.has_tombstones = True
        self._changes.append(Change(before, row, local))
        hooks = ledger.hooks.get(row.table)
        if hooks is not None:
            assert self._depth < HOOK_DEPTH_MAX, f"hooks of {row.table} call each other {self._depth} deep"
            self._depth += 1
            for hook in hooks:
                hook(self, before, row)
            self._depth -= 1

    def _quarantine(self, row: Row, reason: str, detail: str) -> None:
        ledger = self._ledger
        ledger.count("rows_parked")
        ledger.count(PARKED_COUNTER + reason)
        self._tell_of_parked(row, reason, detail)
        if reason == REASON_FUTURE:
            ledger.future_parked = True
        oid = self._origins.intern(self._connection, row.origin)
        self._connection.execute(
            "INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                oid,
                row.seq,
                row.table,
                row.namespace,
                row.key,
                reason,
                detail,
                row.hlc,
                ledger.now_ms,
                encode_rows([row]),
            ),
        )
        excess = int(self._connection.execute("SELECT count(*) FROM quarantine").get) - QUARANTINE_ROWS_MAX
        if excess > 0:
            self._connection.execute(
                "DELETE FROM quarantine WHERE rowid IN (SELECT rowid FROM quarantine ORDER BY rowid LIMIT ?)", (excess,)
            )
            ledger.count("quarantine_dropped", excess)

    def _tell_of_parked(self, row: Row, reason: str, detail: str) -> None:
        told, now_ms = self._ledger.parked_told_ms, self._ledger.now_ms
        last_ms = told.get(reason)
        if last_ms is None or now_ms - last_ms >= PARKED_TOLD_EVERY_MS:
            told[reason] = now_ms
            log.warning(
                "put a row of %s into quarantine (%s: %.200s), table %s, key %.200s; see `relaymesh quarantine list`",
                row.node,
                reason,
                detail,
                row.table,
                row.key,
            )
