"""From one release's form of a database to another's, and back, inside the caller's transaction: all or nothing.

Promises: `upgrade` brings any older database up to this release. `roll_back` leads to the form that an older release
knows, and loses nothing of what is replicated: values of columns that it does not know wait among the unknown columns
of their rows, as they would on a node that never had this release, and rows of tables that it does not know wait in
quarantine. A later upgrade puts both back. No row is stamped anew and no digest changes, so peers notice neither.
"""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from mesh.errors import ConfigError
from mesh.replica import REASON_UNKNOWN_TABLE
from mesh.row_codec import decode_values, encode_rows, encode_values
from mesh.rows import Row
from mesh.tables import Table, Value, declared_at
from node.storage.migrate import Migration, applied_version, check_migrations, migrate_down, migrate_up
from node.storage.origins import OriginTable
from node.storage.reader import read_row
from node.storage.schema import apply_declarations, stored_columns, table_sql
from node.storage.transaction import QUARANTINE_ROWS_MAX

SCHEMA_MIN = 1
"""Before the first migration there is no version vector, and so no replica."""


def upgrade(
    connection: apsw.Connection, tables: Sequence[Table], migrations: Sequence[Migration], *, now_ms: int
) -> None:
    """Run what is missing. ConfigError when a newer release wrote this database."""
    migrate_up(connection, migrations[:1], now_ms=now_ms)
    # Later migrations may index columns of the replicated tables, which the declarations create.
    apply_declarations(connection, tables)
    migrate_up(connection, migrations, now_ms=now_ms)


def roll_back(
    connection: apsw.Connection,
    tables: Sequence[Table],
    migrations: Sequence[Migration],
    *,
    to_version: int,
    now_ms: int,
) -> None:
    """Give the database the form of the release whose newest migration is `to_version`.

    ConfigError, with nothing changed, when there is no way to that version from here.
    """
    check_migrations(connection, migrations)
    here = applied_version(connection)
    if not SCHEMA_MIN <= to_version <= here:
        raise ConfigError(
            f"the database has schema {here}, and cannot be rolled back to {to_version}: give a version from "
            f"{SCHEMA_MIN} to {here}"
        )
    migrate_down(connection, migrations, to_version=to_version)
    older = {table.name: table for table in declared_at(tables, to_version)}
    for table in tables:
        if not stored_columns(connection, table.name):
            continue
        if table.name not in older:
            _check_room(connection, table)
            _put_aside(connection, table, now_ms)
        else:
            _narrow(connection, table, older[table.name])


def _narrow(connection: apsw.Connection, table: Table, older: Table) -> None:
    """Move the values of columns that the older form does not have among the unknown ones, then drop the columns."""
    stored = stored_columns(connection, table.name)
    leaving = [name for name in table.column_names() if name in stored and name not in older.kinds]
    if not leaving:
        return
    quoted = [f'"{name}"' for name in leaving]
    used = " OR ".join(f"{name} IS NOT NULL" for name in quoted)
    found = list(connection.execute(f'SELECT rowid FROM "{table.name}" WHERE {used}'))
    for (rowid,) in found:  # one row at a time: with large values all of them together would not fit into memory
        ext, *values = connection.execute(
            f'SELECT ext, {", ".join(quoted)} FROM "{table.name}" WHERE rowid = ?', (rowid,)
        ).fetchall()[0]
        assert ext is None or isinstance(ext, bytes), ext
        unknown: dict[str, Value] = {} if ext is None else decode_values(ext)
        unknown.update({name: value for name, value in zip(leaving, values, strict=True) if value is not None})
        connection.execute(f'UPDATE "{table.name}" SET ext = ? WHERE rowid = ?', (encode_values(unknown), rowid))
    _drop_indexes(connection, table.name, leaving)
    for name in quoted:
        connection.execute(f'ALTER TABLE "{table.name}" DROP COLUMN {name}')


def _drop_indexes(connection: apsw.Connection, table: str, columns: Sequence[str]) -> None:
    """Drop the indexes that name any of these columns: declarations make theirs again with the next upgrade."""
    indexes = [str(name) for (name,) in connection.execute("SELECT name FROM pragma_index_list(?)", (table,))]
    for index in indexes:
        named = {name for (name,) in connection.execute("SELECT name FROM pragma_index_info(?)", (index,))}
        if named.intersection(columns):
            connection.execute(f'DROP INDEX "{index}"')


def _check_room(connection: apsw.Connection, table: Table) -> None:
    # Beyond its bound, quarantine forgets the oldest: these rows may exist nowhere else.
    count = int(connection.execute(f'SELECT count(*) FROM "{table.name}"').get)
    aside = int(connection.execute("SELECT count(*) FROM quarantine").get)
    if count and aside + count > QUARANTINE_ROWS_MAX:
        raise ConfigError(
            f"{count} rows of {table.name}, which the older release does not know, and {aside} that are aside already "
            f"are more than the {QUARANTINE_ROWS_MAX} that it keeps aside: there is no way back without losing some"
        )


def _put_aside(connection: apsw.Connection, table: Table, now_ms: int) -> None:
    """Put every row of a table into quarantine, where the older release hands it on, then drop the table."""
    origins = OriginTable()
    origins.load(connection)
    sql = table_sql(table)
    rowids = list(connection.execute(f'SELECT rowid FROM "{table.name}"'))
    for (rowid,) in rowids:
        row = read_row(sql, connection.execute(f"{sql.select} WHERE rowid = ?", (rowid,)).fetchall()[0], origins)
        connection.execute(
            "INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            _entry(row, origins.intern(connection, row.origin), now_ms),
        )
    connection.execute(f'DROP TABLE "{table.name}"')


def _entry(row: Row, oid: int, now_ms: int) -> tuple[Value, ...]:
    detail = f"put aside on the way back to a release that knows no table {row.table}"
    return (
        *(oid, row.seq, row.table, row.namespace, row.key),
        *(REASON_UNKNOWN_TABLE, detail, row.hlc, now_ms, encode_rows([row])),
    )
