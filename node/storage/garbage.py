"""Forgets deleted rows: which tombstones of this database are garbage, and what goes with them.

`mesh.stability` says when. Here is how: inside the writer's transaction, either a few at a time in the background, or
at once when a row comes that was made anew over a tombstone which its writer had forgotten already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container
from typing import TYPE_CHECKING

from mesh.rows import Row
from mesh.stability import Stable
from mesh.version_vector import VersionVector
from node.storage.reader import META_STABLE
from node.storage.schema import TableSql
from node.storage.vectors import remove_dots

if TYPE_CHECKING:
    from node.storage.transaction import Ledger

COLLECT_ROWS_MAX = 500
"""Tombstones forgotten in one transaction: local writers wait a few milliseconds behind it."""


def has_tombstones(ledger: Ledger) -> bool:
    """Whether there is any."""
    return any(
        ledger.connection.execute(f'SELECT EXISTS (SELECT 1 FROM "{name}" WHERE deleted = 1)').get
        for name in ledger.tables
    )


def is_garbage(ledger: Ledger, row: Row | None) -> bool:
    """Whether this is a tombstone that every member has seen."""
    return row is not None and row.deleted and ledger.stable.settled.covers(row.origin, row.seq)


def forget(ledger: Ledger, sql: TableSql, rowid: int, namespace: str, key: str) -> None:
    """Drop a tombstone that is garbage, and the rows that belonged to it."""
    _delete(ledger, sql, rowid, namespace, key)
    complete = ledger.stable.complete
    for child in ledger.tables.values():
        if child.table.parent is None or child.table.parent.table != sql.table.name:
            continue
        belonging = list(ledger.connection.execute(child.children, (namespace, key)))
        for child_rowid, child_key, oid, seq in belonging:
            if complete.covers(ledger.origins.origin(oid), seq):
                _delete(ledger, child, child_rowid, namespace, child_key)


def _delete(ledger: Ledger, sql: TableSql, rowid: int, namespace: str, key: str) -> None:
    ledger.connection.execute(sql.delete, (rowid,))
    ledger.rows.pop((sql.table.name, namespace, key), None)
    ledger.count("rows_forgotten")


def collect(ledger: Ledger) -> int:
    """Forget some of the garbage; returns how many tombstones went, fewer than COLLECT_ROWS_MAX when none is left."""
    count = 0
    for sql in ledger.tables.values():
        for origin in ledger.stable.settled.origins():
            oid = ledger.origins.number(origin)
            for lo, hi in ledger.stable.settled.ranges(origin) if oid is not None else ():
                room = COLLECT_ROWS_MAX - count
                found = list(ledger.connection.execute(sql.tombstones, (oid, lo, hi, room)))
                for rowid, namespace, key in found:
                    forget(ledger, sql, rowid, namespace, key)
                count += len(found)
                if count >= COLLECT_ROWS_MAX:
                    return count
    ledger.has_tombstones = has_tombstones(ledger)
    return count


def drop_unsent(ledger: Ledger, sent: Container[int], vector: VersionVector) -> int:
    """Drop rows that a peer does not hold, although it has seen them: `sent` has the names of all that it holds.

    Rows that only we have seen stay, unless we wrote them ourselves and they belong to one that goes. Returns how many
    went.
    """
    dropped: set[int] = set()
    me = ledger.origin.node
    tables = sorted(ledger.tables.values(), key=lambda sql: sql.table.parent is not None)  # parents first
    for sql in tables:
        for rowid, namespace, key, parent, oid, seq in list(ledger.connection.execute(sql.names)):
            origin = ledger.origins.origin(oid)
            if row_name(sql.table.name, namespace, key) in sent:
                continue
            if vector.covers(origin, seq) or (origin.node == me and _parent_name(sql, namespace, parent) in dropped):
                _delete(ledger, sql, rowid, namespace, key)
                dropped.add(row_name(sql.table.name, namespace, key))
    ledger.rows.clear()
    return len(dropped)


def _parent_name(sql: TableSql, namespace: str, parent: str | None) -> int | None:
    belongs_to = sql.table.parent
    return row_name(belongs_to.table, namespace, parent) if belongs_to is not None and parent else None


def is_orphan(ledger: Ledger, sql: TableSql, namespace: str, parent: str | None) -> bool:
    """Whether a row belongs to one that is not here."""
    belongs_to = sql.table.parent
    if belongs_to is None or belongs_to.table not in ledger.tables or not parent:
        return False
    return ledger.connection.execute(ledger.tables[belongs_to.table].get, (namespace, parent)).fetchone() is None


def row_name(table: str, namespace: str, key: str) -> int:
    """A row's name in eight bytes, to remember a million of them."""
    data = "\0".join((table, namespace, key)).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, person=b"relaymesh-name").digest(), "big")


def adopt(ledger: Ledger, stable: Stable) -> bool:
    """Know from now on what a peer knows, too; False when that is nothing new. The caller asks whether we may."""
    if ledger.stable.includes(stable):
        return False
    grown = ledger.stable.joined(stable)
    ledger.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (META_STABLE, grown.to_wire()))
    if grown.collapsed != ledger.stable.collapsed:
        remove_dots(ledger.connection, ledger.origins, grown.collapsed)
        if grown.collapsed.head(ledger.origin):
            # Nobody collapses an origin that is in use: this database must be an old one.
            ledger.mint_wanted = "peers take this node's origin for one that is not used any more"
    ledger.stable = grown
    return True
