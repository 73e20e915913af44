"""What is left of a run when all is quiet, and when every node has stopped: databases, journals, logs, answers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from chaos.real.clients import Ledger
from mesh.rows import Row
from node.storage.database import open_connection
from node.storage.origins import OriginTable
from node.storage.reader import Reader
from node.storage.schema import table_sql
from node.work.tables import WORK_TABLES

RowName = tuple[str, str, str]
"""Table, namespace, key."""
Sums = tuple[int, int, int]
"""Of one table: how many rows, and the sums of the two halves of their digests."""

_SQL = {table.name: table_sql(table) for table in WORK_TABLES}
_BAD_LINE = re.compile(r"Traceback|\bERROR\b|\bCRITICAL\b|AssertionError")
_FULL_DISK_LINE = re.compile(r"ERROR node\.node: the local store ")


@dataclass(frozen=True, slots=True)
class Replica:
    """One node's database."""

    rows: Mapping[RowName, Row]
    sums: Mapping[str, Sums]
    """By table. What verification compares, so it must agree with the rows."""
    queued: Mapping[str, str]
    """Step ids of the local queue, with their namespaces."""
    quarantine: list[str]

    def table(self, name: str) -> list[Row]:
        """All rows of one table that are no tombstones."""
        return [row for row in self.rows.values() if row.table == name and not row.deleted]


@dataclass(frozen=True, slots=True)
class AgentRun:
    """One line of a journal that begins a run."""

    step_id: str
    node: str
    attempt: int
    fence: str
    at: float
    """Wall time."""
    ended_at: float | None = None
    """None when it did not come to an end that its agent could note."""


@dataclass(slots=True, kw_only=True)
class Evidence:
    """Everything that the verdict reads."""

    replicas: Mapping[str, Replica]
    runs: list[AgentRun]
    ledger: Ledger
    unquiet: str = ""
    """Why quiet never came, empty when it did."""
    unexplained: list[str] = field(default_factory=list)
    """Tasks of which `explain` gave no story, and what it said."""
    damage: list[str] = field(default_factory=list)
    """What SQLite found wrong with the databases of stopped nodes."""
    exit_codes: list[tuple[str, int | str]] = field(default_factory=list)
    leftovers: list[int] = field(default_factory=list)
    """Processes that lived on after their nodes had stopped."""
    log_lines: list[str] = field(default_factory=list)
    """What a healthy node never writes to its log."""
    full_disks: frozenset[str] = frozenset()
    """Nodes whose disk was full for a while. Such a node refuses to write, and says so."""


def read_replica(database: Path) -> Replica:
    """Everything in the database of a node. It may run: SQLite lets others read meanwhile."""
    connection = open_connection(database, "", read_only=True)
    try:
        origins = OriginTable()
        origins.load(connection)
        reader = Reader(connection, _SQL, origins)
        rows = {(row.table, row.namespace, row.key): row for name in _SQL for row in reader.select(name)}
        return Replica(
            rows=rows,
            sums={name: _sums(connection, name) for name in _SQL},
            queued={
                str(step): str(namespace) for step, namespace in reader.sql("SELECT step_id, namespace FROM queue")
            },
            quarantine=[
                f"{table} {key}: {reason} ({detail})"
                for table, key, reason, detail in reader.sql("SELECT table_name, key, reason, detail FROM quarantine")
            ],
        )
    finally:
        connection.close()


def _sums(connection: apsw.Connection, table: str) -> Sums:
    # The halves of a digest are 64-bit numbers, so their sums are made here: SQLite's could overflow.
    digests = list(connection.execute(f'SELECT d1, d2 FROM "{table}"'))
    return len(digests), sum(d1 for d1, _ in digests), sum(d2 for _, d2 in digests)


def damage(database: Path) -> list[str]:
    """What is wrong with the database of a node that has stopped."""
    connection = open_connection(database, "", read_only=True)
    try:
        found = [str(line) for (line,) in connection.execute("PRAGMA integrity_check")]
    finally:
        connection.close()
    return [] if found == ["ok"] else [f"{database}: {line}" for line in found]


def read_journals(directory: Path) -> list[AgentRun]:
    """Every run that an agent noted, by time."""
    runs: list[AgentRun] = []
    for journal in sorted(directory.iterdir()):
        open_runs: dict[tuple[str, str], int] = {}
        for line in journal.read_text().splitlines():
            word, step_id, attempt, fence, at = line.split(" ")
            if word == "start":
                open_runs[step_id, fence] = len(runs)
                runs.append(AgentRun(step_id, journal.name, int(attempt), fence, float(at)))
            elif (step_id, fence) in open_runs:
                number = open_runs.pop((step_id, fence))
                runs[number] = dataclasses.replace(runs[number], ended_at=float(at))
    return sorted(runs, key=lambda run: run.at)


def bad_lines(logs: Mapping[str, Path], *, full_disks: Collection[str] = ()) -> list[str]:
    """The lines of these logs, by node, that tell of a fault of our own. With a full disk a node says that it fails."""
    return [
        f"{node}: {line}"
        for node, log in logs.items()
        for line in log.read_text(errors="replace").splitlines()
        if _BAD_LINE.search(line) and not (node in full_disks and _FULL_DISK_LINE.search(line))
    ]
