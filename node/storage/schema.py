"""SQL for replicated tables, made from their declarations: definition, growth by new columns, and prepared texts.

A declaration is the only place where a replicated table's columns are written down. Opening a database creates tables
that are missing and adds columns that are missing; a value that waited among the unknown columns moves into its own.
Names in statements come from declarations, never from input.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import apsw

from mesh.errors import ConfigError
from mesh.row_codec import decode_values, encode_values
from mesh.tables import ColumnKind, Table

METADATA: tuple[tuple[str, str], ...] = (
    ("generation", "INTEGER"),
    ("deleted", "INTEGER"),
    ("rank", "INTEGER"),
    ("cluster_epoch", "INTEGER"),
    ("lease_epoch", "INTEGER"),
    ("lease_hlc", "INTEGER"),
    ("hlc", "INTEGER"),
    ("node", "TEXT"),
    ("oid", "INTEGER"),
    ("seq", "INTEGER"),
)
"""Row metadata in storage order. `oid` is this database's number for the origin."""

_DIGEST = ("d1", "d2")
_RESERVED = frozenset({"rowid", "namespace", "key", "ext", *_DIGEST, *(name for name, _ in METADATA)})
_TYPES: dict[ColumnKind, str] = {"text": "TEXT", "int": "INTEGER", "real": "REAL", "blob": "BLOB"}
_NAME = re.compile(r"[a-z][a-z0-9_]*")


UPDATES_MAX = 64
"""Update statements remembered for each table. The work layer needs about ten; a peer's rows may change anything."""


@dataclass(frozen=True, slots=True)
class TableSql:
    """The statements for one replicated table, made once so that SQLite's statement cache finds them by text."""

    table: Table
    columns: tuple[str, ...]
    declared: frozenset[str]
    select: str
    """Up to FROM; the first column is the rowid, then namespace, key, METADATA, the columns, and `ext`."""
    get: str
    insert: str
    """Takes METADATA, the digest, the columns and `ext`, then namespace and key."""
    by_dot: str
    delete: str
    """Takes the rowid. Only garbage is ever deleted."""
    tombstones: str
    """rowid, namespace and key; takes oid, the first and the last sequence number, and a limit."""
    children: str
    """rowid, key, oid and seq of what belongs to a parent; takes namespace and the parent's key. Empty without one."""
    names: str
    """rowid, namespace, key, the parent's key or NULL, oid and seq of every row."""
    sums: str
    range_sum: str
    _updates: dict[tuple[str, ...], str] = field(default_factory=dict, repr=False, compare=False)

    def update(self, changed: tuple[str, ...]) -> str:
        """Takes METADATA, the digest, these of the columns and `ext`, then the rowid.

        SQLite rewrites the indexes of all columns that a statement names, whether or not their values differ. A status
        change that named all columns would touch a page of every index.
        """
        statement = self._updates.get(changed)
        if statement is None:
            if len(self._updates) >= UPDATES_MAX:
                self._updates.clear()
            written = [*(name for name, _ in METADATA), *_DIGEST, *changed, "ext"]
            assignments = ", ".join(f'"{name}" = ?' for name in written)
            statement = self._updates[changed] = f'UPDATE "{self.table.name}" SET {assignments} WHERE rowid = ?'
        return statement


def table_sql(table: Table) -> TableSql:
    """The statements for this table."""
    _check_names(table)
    columns = table.column_names()
    quoted = [f'"{name}"' for name in columns]
    metadata = [name for name, _ in METADATA]
    select = f'SELECT rowid, {", ".join(["namespace", "key", *metadata, *quoted, "ext"])} FROM "{table.name}"'
    written = [*metadata, *_DIGEST, *quoted, "ext"]
    marks = ", ".join("?" * (len(written) + 2))
    return TableSql(
        table=table,
        columns=columns,
        declared=frozenset(columns),
        select=select,
        get=f"{select} WHERE namespace = ? AND key = ?",
        insert=f'INSERT INTO "{table.name}" ({", ".join(written)}, namespace, key) VALUES ({marks})',
        by_dot=f"{select} WHERE oid = ? AND seq BETWEEN ? AND ? ORDER BY seq",
        delete=f'DELETE FROM "{table.name}" WHERE rowid = ?',
        tombstones=f'SELECT rowid, namespace, key FROM "{table.name}" '
        "WHERE deleted = 1 AND oid = ? AND seq BETWEEN ? AND ? ORDER BY seq LIMIT ?",
        children=""
        if table.parent is None
        else f'SELECT rowid, key, oid, seq FROM "{table.name}" WHERE namespace = ? AND "{table.parent.column}" = ?',
        names=f"SELECT rowid, namespace, key, {'NULL' if table.parent is None else table.parent.column}, oid, seq "
        f'FROM "{table.name}"',
        sums=f'SELECT oid, count(*), sum(d1), sum(d2) FROM "{table.name}" GROUP BY oid',
        range_sum=f'SELECT count(*), ifnull(sum(d1), 0), ifnull(sum(d2), 0) FROM "{table.name}" '
        "WHERE oid = ? AND seq BETWEEN ? AND ?",
    )


def create_table_sql(table: Table) -> str:
    """The definition of a replicated table and its indexes.

    Uniqueness beyond the key, foreign keys and triggers are absent on purpose: in a table that merges from many nodes
    each of them could make a good row fail on one node only.
    """
    _check_names(table)
    lines = ["namespace TEXT NOT NULL", "key TEXT NOT NULL"]
    lines += [f"{name} {kind} NOT NULL" for name, kind in METADATA]
    lines += [f"{name} INTEGER NOT NULL" for name in _DIGEST]
    lines += [f'"{column.name}" {_TYPES[column.kind]}' for column in table.columns]
    lines.append("ext BLOB")  # canonical msgpack of the columns that this release does not know
    body = ",\n    ".join(lines)
    # The digest is part of the second index, so that a range is summed without touching the rows.
    return (
        f'CREATE TABLE "{table.name}" (\n    {body}\n) STRICT;\n'
        f'CREATE UNIQUE INDEX "{table.name}_key" ON "{table.name}" (namespace, key);\n'
        f'CREATE INDEX "{table.name}_dot" ON "{table.name}" (oid, seq, d1, d2);\n'
    ) + _garbage_indexes(table)


def _garbage_indexes(table: Table) -> str:
    # Tombstones are few, so finding them must not cost a look at every row. Older databases lack these indexes.
    indexes = f'CREATE INDEX IF NOT EXISTS "{table.name}_deleted" ON "{table.name}" (oid, seq) WHERE deleted = 1;\n'
    if table.parent is not None:
        indexes += (
            f'CREATE INDEX IF NOT EXISTS "{table.name}_parent" ON "{table.name}" '
            f'(namespace, "{table.parent.column}");\n'
        )
    return indexes


def _check_names(table: Table) -> None:
    for name in (table.name, *table.column_names()):
        assert _NAME.fullmatch(name), f"{name!r} is no name for a table or column"
    clashes = sorted(_RESERVED.intersection(table.column_names()))
    assert not clashes, f"table {table.name}: columns {clashes} are row metadata; choose other names"


def apply_declarations(connection: apsw.Connection, tables: Sequence[Table]) -> None:
    """Create missing tables and add missing columns, inside the caller's transaction.

    ConfigError when the database has a column, or a type, that the declarations do not: a newer release wrote it.
    """
    for table in tables:
        stored = stored_columns(connection, table.name)
        if not stored:
            connection.execute(create_table_sql(table))
            continue
        for column in table.columns:
            if column.name not in stored:
                connection.execute(f'ALTER TABLE "{table.name}" ADD COLUMN "{column.name}" {_TYPES[column.kind]}')
        connection.execute(_garbage_indexes(table))
        if any(column.name not in stored for column in table.columns):
            _lift_unknown_columns(connection, table)
        differences = table_differences(connection, table)
        if differences:
            raise ConfigError(
                f"the database was written by a newer RelayMesh: {'; '.join(differences)}. Install that release again, "
                "or migrate the database down with it first. Nothing was changed"
            )


def stored_columns(connection: apsw.Connection, name: str) -> dict[str, str]:
    """The columns of a table in the database with their SQL types; empty when there is no such table."""
    return {
        str(column): str(kind)
        for column, kind in connection.execute("SELECT name, type FROM pragma_table_info(?)", (name,))
    }


def table_differences(connection: apsw.Connection, table: Table) -> list[str]:
    """How the database's form of this table differs from the declaration; empty when it does not."""
    expected = {"namespace": "TEXT", "key": "TEXT", **dict(METADATA), **dict.fromkeys(_DIGEST, "INTEGER")}
    expected |= {column.name: _TYPES[column.kind] for column in table.columns}
    expected["ext"] = "BLOB"
    stored = stored_columns(connection, table.name)
    return [
        f"{table.name}.{name} is {stored.get(name, 'missing')}, expected {expected.get(name, 'no such column')}"
        for name in sorted(expected.keys() | stored.keys())
        if expected.get(name) != stored.get(name)
    ]


def _lift_unknown_columns(connection: apsw.Connection, table: Table) -> None:
    # Peers of a newer release may have sent these columns before this upgrade. A value of a wrong type stays unknown:
    # the row keeps its digest either way, because columns and unknown columns are one mapping to it.
    kinds = {"text": str, "int": int, "real": float, "blob": bytes}
    waiting = list(connection.execute(f'SELECT rowid, ext FROM "{table.name}" WHERE ext IS NOT NULL'))
    for rowid, ext in waiting:
        values = decode_values(ext)
        known = {name: value for name, value in values.items() if type(value) is kinds.get(table.kinds.get(name, ""))}
        if known:
            rest = {name: value for name, value in values.items() if name not in known}
            names = ", ".join(f'"{name}" = ?' for name in known)
            connection.execute(
                f'UPDATE "{table.name}" SET {names}, ext = ? WHERE rowid = ?',
                (*known.values(), encode_values(rest) if rest else None, rowid),
            )
