"""What a function may ask the database inside one read transaction, and how a pull is cut into chunks.

A pull sends whole requests, never a part of one, and may take many read transactions while rows go on changing. Its
last chunk carries a vector that the receiver may then join. That is only safe if for every dot in it the receiver
got the row, or the one that beat it; `PullCursor` says how that is reached without holding a snapshot open.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import apsw

from mesh.ids import Origin
from mesh.replica import RELAYED
from mesh.row_codec import CHUNK_LIMITS, decode_rows, decode_values, row_bytes
from mesh.rows import Row
from mesh.stability import Stable
from mesh.tables import Value
from mesh.version_vector import VersionVector
from node.storage.origins import NO_ORIGIN, OriginTable
from node.storage.schema import METADATA, TableSql
from node.storage.vectors import load_vector

META_STABLE = "engine.stable"

CHUNK_BYTES_MAX = 1 << 20
"""Where a chunk ends by default; one large request may exceed it, since requests are not split."""

_FIRST_COLUMN = 3 + len(METADATA)  # after rowid, namespace and key
_RELAYED_MARKS = ", ".join("?" * len(RELAYED))
_QUARANTINED = (
    f"SELECT row FROM quarantine WHERE oid = ? AND seq BETWEEN ? AND ? AND reason IN ({_RELAYED_MARKS}) ORDER BY seq"
)


@dataclass(frozen=True, slots=True)
class PullCursor:
    """Where a pull goes on.

    The pull works in phases. A phase sends the dots that `target` covers and `base` does not, where `target` is the
    vector at the phase's first read. A row may be overwritten before the phase gets to it; what overwrote it has a
    dot outside `target`, so the next phase, whose base includes this target, sends that. A phase that begins and ends
    within one read transaction missed nothing: its target ends the pull.
    """

    base: VersionVector
    target: VersionVector
    origin: Origin
    seq: int
    """The last sequence number of `origin` that was sent; origins before it in order are done."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a pull: whole requests in (origin, seq) order. Exactly one of `cursor` and `vector` is set."""

    rows: list[Row]
    cursor: PullCursor | None
    """Pass it to the next call."""
    vector: VersionVector | None
    """The receiver joins this in the same transaction as these, the last, rows."""


class Reader:
    """Queries inside one read transaction. Use it only inside the function that it was given to."""

    def __init__(self, connection: apsw.Connection, tables: Mapping[str, TableSql], origins: OriginTable) -> None:
        self._connection = connection
        self._tables = tables
        self._origins = origins

    def get(self, table: str, namespace: str, key: str) -> Row | None:
        """The current version of a row, also when it is a tombstone (`row.deleted`); None when it never existed."""
        sql = self._tables[table]
        found = self._connection.execute(sql.get, (namespace, key)).fetchone()
        return None if found is None else read_row(sql, found, self._origins)

    def select(
        self, table: str, where: str = "1", params: Sequence[Value] = (), *, order: str = "", limit: int | None = None
    ) -> list[Row]:
        """The current versions for which this SQL condition holds; tombstones too, unless it excludes them.

        Conditions may name every column of the table and of the row's metadata. Never build them from input: pass that
        in `params`.
        """
        sql = self._tables[table]
        statement = f"{sql.select} WHERE {where}"
        if order:
            statement += f" ORDER BY {order}"
        if limit is not None:
            statement += " LIMIT ?"
            params = (*params, limit)
        return [read_row(sql, found, self._origins) for found in self._connection.execute(statement, tuple(params))]

    def sql(self, statement: str, params: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        """The result of a query over local tables, or an aggregate."""
        return list(self._connection.execute(statement, tuple(params)))

    def meta_get(self, name: str) -> bytes | None:
        """A small local value, None when it was never set."""
        value = self._connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).get
        assert value is None or isinstance(value, bytes), (name, value)
        return value

    def vector(self) -> VersionVector:
        """What this database has seen, as of this transaction."""
        return load_vector(self._connection, self._origins)

    def stable(self) -> Stable:
        """What this database knows to be stable, as of this transaction."""
        data = self.meta_get(META_STABLE)
        return Stable() if data is None else Stable.from_wire(data)

    def rows_missing_from(
        self,
        vector: VersionVector,
        *,
        rows_max: int,
        bytes_max: int = CHUNK_BYTES_MAX,
        after: PullCursor | None = None,
    ) -> Chunk:
        """The next part of what the holder of `vector` lacks: about `rows_max` rows or `bytes_max` bytes.

        Pass the same `vector` in every call of one pull, and the last chunk's cursor as `after`.
        """
        assert rows_max > 0, rows_max
        now = self.vector()
        position = PullCursor(vector, now, NO_ORIGIN, 0) if after is None else after
        began_here = after is None
        rows: list[Row] = []
        while True:
            stopped_at = self._fill(rows, position, rows_max, bytes_max)
            if stopped_at is not None:
                return Chunk(rows, PullCursor(position.base, position.target, *stopped_at), None)
            if began_here:
                return Chunk(rows, None, position.target)
            base = position.base.copy()
            base.join(position.target)
            position = PullCursor(base, now, NO_ORIGIN, 0)
            began_here = True

    def _fill(self, rows: list[Row], position: PullCursor, rows_max: int, bytes_max: int) -> tuple[Origin, int] | None:
        # Append rows of this phase until it ends (None) or the chunk is full (the last dot that was appended).
        size = sum(map(row_bytes, rows))
        for row in self._rows_of_phase(position):
            last = rows[-1] if rows else None
            if (
                last is not None
                and (len(rows) >= rows_max or size >= bytes_max)
                and (row.origin, row.hlc) != (last.origin, last.hlc)
            ):
                return last.origin, last.seq
            rows.append(row)
            size += row_bytes(row)
        return None

    def _rows_of_phase(self, position: PullCursor) -> Iterator[Row]:
        for origin, ranges in position.base.missing_from(position.target).items():
            if origin < position.origin:
                continue
            done = position.seq if origin == position.origin else 0
            for lo, hi in ranges:
                if hi > done:
                    yield from self._rows_by_dot(origin, max(lo, done + 1), hi)

    def _rows_by_dot(self, origin: Origin, lo: int, hi: int) -> Iterator[Row]:
        # One request's rows lie in several tables; merging by sequence number brings them together again. Rows are
        # stepped through one by one: with large payloads a whole range would not fit into memory.
        oid = self._origins.number(origin)
        if oid is None:
            return
        sources: list[Iterator[Row]] = [self._table_by_dot(sql, oid, lo, hi) for sql in self._tables.values()]
        sources.append(self._quarantined(oid, lo, hi))
        yield from heapq.merge(*sources, key=attrgetter("seq"))

    def _table_by_dot(self, sql: TableSql, oid: int, lo: int, hi: int) -> Iterator[Row]:
        for found in self._connection.execute(sql.by_dot, (oid, lo, hi)):
            yield read_row(sql, found, self._origins)

    def _quarantined(self, oid: int, lo: int, hi: int) -> Iterator[Row]:
        # Their dots count as seen here, so nobody would ever ask another node for them: hand them on.
        for (data,) in self._connection.execute(_QUARANTINED, (oid, lo, hi, *RELAYED)):
            yield from decode_rows(data, limits=CHUNK_LIMITS)

    def origins_without_rows(self) -> list[Origin]:
        """The origins of which something was seen and no row is left, in quarantine neither."""
        tables = [f'"{name}"' for name in self._tables] + ["quarantine"]
        empty = " AND ".join(f"NOT EXISTS (SELECT 1 FROM {name} AS t WHERE t.oid = v.oid)" for name in tables)
        found = self._connection.execute(f"SELECT DISTINCT v.oid FROM vector AS v WHERE {empty} ORDER BY v.oid")
        return [self._origins.origin(oid) for (oid,) in found]

    def sums(self, schema: int | None = None) -> dict[Origin, tuple[int, int, int]]:
        """For each origin the number of current rows and the sums of their two digest parts.

        Replicas with equal vectors and nothing in quarantine have equal sums. With a `schema`, only tables count that a
        release of that schema version knows: its node holds the rows of all others in quarantine.
        """
        totals: dict[int, tuple[int, int, int]] = {}
        for sql in self._tables_at(schema):
            for oid, count, d1, d2 in self._connection.execute(sql.sums):
                before = totals.get(oid, (0, 0, 0))
                totals[oid] = (before[0] + count, before[1] + d1, before[2] + d2)
        named = {self._origins.origin(oid): total for oid, total in totals.items()}
        return dict(sorted(named.items()))

    def _tables_at(self, schema: int | None) -> list[TableSql]:
        return [sql for sql in self._tables.values() if schema is None or sql.table.since <= schema]

    def range_sum(self, origin: Origin, lo: int, hi: int, schema: int | None = None) -> tuple[int, int, int]:
        """Like `sums`, for one origin's rows with sequence numbers `lo..hi`."""
        oid = self._origins.number(origin)
        count = d1 = d2 = 0
        for sql in self._tables_at(schema):
            for part in self._connection.execute(sql.range_sum, (oid, lo, hi)):
                count, d1, d2 = count + part[0], d1 + part[1], d2 + part[2]
        return count, d1, d2

    def first_row_in(self, origin: Origin, ranges: Iterable[tuple[int, int]]) -> Row | None:
        """The row of one origin with the lowest sequence number in these ascending ranges, hence its oldest there."""
        return next((row for lo, hi in ranges for row in self._rows_by_dot(origin, lo, hi)), None)

    def rows_in_range(self, origin: Origin, lo: int, hi: int) -> list[Row]:
        """All current rows of one origin with sequence numbers `lo..hi`, and quarantined ones that are handed on."""
        return list(self._rows_by_dot(origin, lo, hi))


def read_row(sql: TableSql, found: Sequence[Any], origins: OriginTable) -> Row:
    """The row in one result of `sql.select`."""
    values: dict[str, Value] = {
        name: value for name, value in zip(sql.columns, found[_FIRST_COLUMN:-1], strict=True) if value is not None
    }
    if found[-1] is not None:
        values.update(decode_values(found[-1]))
    return Row(
        table=sql.table.name,
        namespace=found[1],
        key=found[2],
        generation=found[3],
        deleted=found[4] != 0,
        rank=found[5],
        cluster_epoch=found[6],
        lease_epoch=found[7],
        lease_hlc=found[8],
        hlc=found[9],
        node=found[10],
        origin=origins.origin(found[11]),
        seq=found[12],
        values=values,
    )
