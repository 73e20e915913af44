"""Reads every replicated row of a database file and says what it finds: counts, sums, and whatever does not hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import apsw

from mesh.errors import RecordError
from mesh.ids import Origin
from mesh.row_codec import row_digest, value_problem
from mesh.tables import Table
from node.storage.origins import OriginTable
from node.storage.reader import Reader, read_row
from node.storage.schema import stored_columns, table_sql

PROBLEMS_MAX = 10
"""Named one by one; one bad release breaks every row alike."""

Sums = dict[Origin, tuple[int, int, int]]


@dataclass(slots=True)
class ReplicaCheck:
    """What a database holds, and what is wrong with it."""

    rows: dict[str, int] = field(default_factory=dict)
    sums: Sums = field(default_factory=dict)
    aside: int = 0
    """Rows in quarantine."""
    problems: list[str] = field(default_factory=list)


def check_replica(connection: apsw.Connection, tables: Sequence[Table]) -> ReplicaCheck:
    """Decode every row of these tables as a node would, and take each digest anew. apsw's errors when a disk fails."""
    check = ReplicaCheck()
    integrity = connection.execute("PRAGMA quick_check(1)").get
    if integrity != "ok":
        check.problems.append(f"SQLite finds damage: {integrity}")
        return check
    origins = OriginTable()
    origins.load(connection)
    present = [table for table in tables if stored_columns(connection, table.name)]
    for table in present:
        check.rows[table.name] = _check_table(connection, table, origins, check.problems)
    check.sums = sums_of(connection, present)
    check.aside = int(connection.execute("SELECT count(*) FROM quarantine").get)
    return check


def sums_of(connection: apsw.Connection, tables: Sequence[Table]) -> Sums:
    """Count and digest sums of the current rows for each origin, over those of these tables that are there."""
    origins = OriginTable()
    origins.load(connection)
    present = {table.name: table_sql(table) for table in tables if stored_columns(connection, table.name)}
    return Reader(connection, present, origins).sums()


def _check_table(connection: apsw.Connection, table: Table, origins: OriginTable, problems: list[str]) -> int:
    sql = table_sql(table)
    count = 0
    digests = connection.execute(f'SELECT d1, d2 FROM "{table.name}" ORDER BY rowid')
    for found, stored in zip(connection.execute(f"{sql.select} ORDER BY rowid"), digests, strict=True):
        count += 1
        try:
            row = read_row(sql, found, origins)
        except (RecordError, KeyError) as error:
            problem: str | None = f"cannot be decoded ({error})"
        else:
            problem = value_problem(table, row.values)
            if problem is None and row_digest(row) != stored:
                problem = "has another digest than the one stored with it"
        if problem is not None and len(problems) < PROBLEMS_MAX:
            problems.append(f"row {found[2]!r} of {table.name} {problem}")
    return count
