"""Rehearses an upgrade, and the way back, on a copy of a node's database: what would happen, and how long it takes.

Promises: the root is only read. Everything happens in a scratch folder below the output folder, which is removed at the
end. Throwaway nodes run on loopback, in a mesh of their own with a new identity, without seeds, peers or the agents of
the root: they can neither reach the real mesh nor do its work outside. A report is written whatever the outcome.
"""

from __future__ import annotations

import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import msgspec

from chaos.real.processes import Cluster, Release, node_command
from mesh.errors import ConfigError, RelayMeshError
from mesh.ids import parse_node_id
from mesh.tables import Table, declared_at
from node.settings import SETTINGS_FILE
from node.storage.database import open_connection
from node.storage.migrate import applied_version, check_migrations, load_migrations
from node.storage.schema import stored_columns
from node.storage.schema_changes import roll_back, upgrade
from node.work.tables import WORK_TABLES
from tools.replica_check import ReplicaCheck, Sums, check_replica, sums_of
from tools.root_copy import DATABASE, copy_database, database_bytes

SCHEMA = "relaymesh.upgrade-rehearsal.v1"
REPORT_FILE = "report.json"
COPIES = 5
"""Of the database, at most: the copy, the upgraded and the rolled-back one, a node's, and room to rewrite a table."""
LOOKS = 2
"""Steps that only look at what was given, and so refuse it."""
ANSWER_S = 20.0

_WHEEL = re.compile(r"relaymesh-([^-]+)-py3-none-any\.whl")
_WHEEL_MIGRATION = re.compile(r"node/storage/migrations/(\d{4})_[a-z0-9_]+\.sql")


class Step(msgspec.Struct, rename="camel"):
    """One thing that was tried."""

    name: str
    ok: bool = False
    duration_ms: int = 0
    detail: str = ""


class Sizes(msgspec.Struct, rename="camel"):
    """Bytes of the database in each form."""

    before: int = 0
    upgraded: int = 0
    rolled_back: int = 0


class Changes(msgspec.Struct, rename="camel"):
    """What the upgrade does to the database."""

    migrations: list[str] = []
    tables: list[str] = []
    columns: list[str] = []


class Report(msgspec.Struct, rename="camel", kw_only=True):
    """Everything that a rehearsal found."""

    schema: str = SCHEMA
    root: str
    node_was_running: bool = False
    release: str
    previous_release: str | None = None
    from_schema: int = 0
    to_schema: int = 0
    back_to_schema: int = 0
    changes: Changes = msgspec.field(default_factory=Changes)
    upgrade_ms: int = 0
    """What the migration itself took: so much longer the first start of the new release takes."""
    roll_back_ms: int = 0
    bytes: Sizes = msgspec.field(default_factory=Sizes)
    rows: dict[str, int] = {}
    rows_aside: int = 0
    steps: list[Step] = []
    ok: bool = False
    problems: list[str] = []


class _StepFailedError(Exception):
    """A step showed something that must not happen; the rest of the rehearsal would mean nothing."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """The release to go back to, as it was installed."""

    path: Path
    release: str
    schema: int


def read_wheel(path: Path) -> Wheel:
    """What a wheel of ours holds. ConfigError when it is none."""
    name = _WHEEL.fullmatch(path.name)
    if name is None or not path.is_file():
        raise ConfigError(f"{path} is no wheel of RelayMesh: give a file named relaymesh-VERSION-py3-none-any.whl")
    try:
        with zipfile.ZipFile(path) as archive:
            found = [match for entry in archive.namelist() if (match := _WHEEL_MIGRATION.fullmatch(entry))]
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} cannot be read ({error}): fetch it again") from error
    if not found:
        raise ConfigError(f"{path} holds no migrations, so it is no RelayMesh node: fetch it again")
    return Wheel(path, name[1], max(int(match[1]) for match in found))


def rehearse(root: Path, out: Path, *, release: str, wheel: Path | None, say: Callable[[str], None]) -> Report:
    """Rehearse on a copy of this root and write the report into `out`, a new or empty folder.

    `wheel` is the release to go back to; a node of it is started on the rolled-back copy. `say` hears of progress.
    ConfigError, with nothing written, when there is nothing to rehearse on or no room for it.
    """
    kept = None if wheel is None else read_wheel(wheel)
    _check_place(root, out)
    scratch = out / "scratch"
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(f"cannot make {scratch}: {error.strerror}; give another --out") from None
    report = Report(root=str(root), release=release, previous_release=None if kept is None else kept.release)
    try:
        _Rehearsal(root, scratch, report, kept, say).run()
    except ConfigError:
        shutil.rmtree(scratch)
        out.rmdir()
        raise
    finally:
        for log in scratch.glob("*/*.log"):
            shutil.copyfile(log, out / f"{log.parent.name}.log")
        shutil.rmtree(scratch, ignore_errors=True)
    (out / REPORT_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return report


def _check_place(root: Path, out: Path) -> None:
    size = database_bytes(root)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty: give a new folder as --out")
    if out.resolve().is_relative_to(root.resolve()):
        raise ConfigError(
            f"{out} is inside the root, which a rehearsal does not touch: give a folder elsewhere as --out"
        )
    place = next(parent for parent in (out, *out.resolve().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < COPIES * size:
        raise ConfigError(f"{place} has {free} bytes free, and a rehearsal needs {COPIES * size}: give another --out")


@dataclass(slots=True)
class _Rehearsal:
    root: Path
    scratch: Path
    report: Report
    wheel: Wheel | None
    say: Callable[[str], None]
    node_id: str = "rehearsal"
    before: ReplicaCheck = field(default_factory=ReplicaCheck)
    sums_back: Sums = field(default_factory=dict)
    """Of the tables that the release to go back to knows, before anything happened."""

    def run(self) -> None:
        original, upgraded, back = (self.scratch / name for name in ("original.db", "upgraded.db", "rolled-back.db"))
        report = self.report
        try:
            with self._step("copy the database") as step:
                report.node_was_running = copy_database(self.root, original)
                report.bytes.before = original.stat().st_size
                step.detail = f"{report.bytes.before} bytes, by {'backup' if report.node_was_running else 'file'}"
            with self._step("check what it holds") as step:
                self._look_at(original, step)
            with self._step(f"upgrade to {report.release}") as step:
                shutil.copyfile(original, upgraded)
                self._upgrade(upgraded, step)
            with self._step("roll back") as step:
                shutil.copyfile(upgraded, back)
                self._roll_back(back, step)
            with self._step(f"run a node of {report.release}") as step:
                self._run_node("node", upgraded, None, step)
            if self.wheel is not None:
                with self._step(f"run a node of {self.wheel.release} on the rolled-back database") as step:
                    self._run_node("previous-node", back, self._unpacked(self.wheel), step)
        except _StepFailedError:
            return
        report.ok = True

    @contextmanager
    def _step(self, name: str) -> Iterator[Step]:
        """Time a step; an error of ours, of a disk or of a statement is the step's failure and ends the rehearsal."""
        step = Step(name)
        self.report.steps.append(step)
        self.say(f"{name} …")
        began = time.monotonic()
        try:
            yield step
            step.ok = True
        except ConfigError as error:
            if len(self.report.steps) <= LOOKS:
                raise  # nothing was rehearsed yet: there is nothing here that could be
            self._fail(step, str(error))
        except (RelayMeshError, OSError, apsw.Error) as error:  # a faulty migration is what this is to find
            self._fail(step, str(error))
        finally:
            step.duration_ms = round((time.monotonic() - began) * 1000)

    def _fail(self, step: Step, problem: str) -> None:
        self.report.problems.append(f"{step.name}: {problem}")
        raise _StepFailedError

    def _look_at(self, database: Path, step: Step) -> None:
        report, migrations = self.report, load_migrations()
        with _opened(database) as connection:
            check_migrations(connection, migrations)
            report.from_schema, report.to_schema = applied_version(connection), migrations[-1].version
            report.back_to_schema = self.wheel.schema if self.wheel else report.from_schema
            if not report.from_schema >= 1 or report.back_to_schema > report.to_schema:
                raise ConfigError(
                    f"the database has schema {report.from_schema}, this release {report.to_schema}, and the one to go "
                    f"back to {report.back_to_schema}: rehearse with the newest release of the three"
                )
            self.before = check_replica(connection, _tables(report.from_schema))
            self.sums_back = sums_of(connection, _tables(report.back_to_schema))
            self._expect(step, self.before.problems)
            name = connection.execute(
                "SELECT node FROM origins WHERE oid = (SELECT CAST(CAST(value AS TEXT) AS INTEGER) FROM meta "
                "WHERE name = 'engine.origin')"
            ).get
        self.node_id = parse_node_id(str(name or self.node_id))
        report.rows, report.rows_aside = self.before.rows, self.before.aside
        step.detail = f"schema {report.from_schema}, {sum(report.rows.values())} rows, {report.rows_aside} put aside"

    def _upgrade(self, database: Path, step: Step) -> None:
        report, migrations = self.report, load_migrations()
        with _opened(database) as connection:
            columns = {table.name: stored_columns(connection, table.name) for table in WORK_TABLES}
            began = time.monotonic()
            connection.execute("BEGIN IMMEDIATE")
            upgrade(connection, WORK_TABLES, migrations, now_ms=int(time.time() * 1000))
            connection.execute("COMMIT")
            report.upgrade_ms = round((time.monotonic() - began) * 1000)
            report.changes = Changes(
                [f"{each.version} {each.description}" for each in migrations if each.version > report.from_schema],
                [name for name, stored in columns.items() if not stored],
                [
                    f"{table.name}.{column}"
                    for table in WORK_TABLES
                    for column in table.column_names()
                    if columns[table.name] and column not in columns[table.name]
                ],
            )
            after = check_replica(connection, WORK_TABLES)
            self._expect(step, [*after.problems, *_differences(self.before, after)])
        report.bytes.upgraded = database.stat().st_size
        step.detail = f"schema {report.to_schema} in {report.upgrade_ms} ms, {_named(report.changes)}, equal sums"

    def _roll_back(self, database: Path, step: Step) -> None:
        report, migrations = self.report, load_migrations()
        target = report.back_to_schema
        with _opened(database) as connection:
            began = time.monotonic()
            connection.execute("BEGIN IMMEDIATE")
            roll_back(connection, WORK_TABLES, migrations, to_version=target, now_ms=int(time.time() * 1000))
            connection.execute("COMMIT")
            report.roll_back_ms = round((time.monotonic() - began) * 1000)
            back = check_replica(connection, _tables(target))
            # Rows of tables that the older release does not know went aside.
            known = [table.name for table in _tables(target)]
            expected = {name: count for name, count in self.before.rows.items() if name in known}
            self._expect(step, [*back.problems, *_differences(ReplicaCheck(expected, self.sums_back), back)])
        report.bytes.rolled_back = database.stat().st_size
        aside = back.aside - self.before.aside
        step.detail = f"schema {target} in {report.roll_back_ms} ms, {aside} rows put aside, all others as they were"

    def _run_node(self, name: str, database: Path, release: Release | None, step: Step) -> None:
        """Start a node on a copy, have it say how it is and run a task, and stop it in order."""
        with Cluster(self.scratch / name, [self.node_id], flags={self.node_id: ("--start-alone",)}) as cluster:
            if release is not None:
                cluster.releases[self.node_id] = release
            root = cluster.nodes[self.node_id].root
            shutil.copyfile(database, root / DATABASE)
            if (self.root / SETTINGS_FILE).exists():
                shutil.copyfile(self.root / SETTINGS_FILE, root / SETTINGS_FILE)
            with _opened(root / DATABASE) as connection:
                connection.execute("DELETE FROM members")  # whom it would call: they belong to the real mesh
            began = time.monotonic()
            cluster.start()
            ready_ms = round((time.monotonic() - began) * 1000)
            cluster.wait_answer(self.node_id, "health", lambda health: health["ok"], ANSWER_S, "the node is well")
            task = cluster.admin(self.node_id, "submit", agent="echo", input=b"rehearsal", idempotencyKey="rehearsal")
            cluster.wait_answer(
                self.node_id,
                "task",
                lambda view: view["status"] == "SUCCESS",
                ANSWER_S,
                "it ran a task",
                taskId=task["taskId"],
            )
            code = cluster.terminate(self.node_id)
            self._expect(step, [] if code == 0 else [f"it ended with {code}: {cluster.log_tail(self.node_id)[-300:]}"])
            with _opened(root / DATABASE) as connection:
                self._expect(step, check_replica(connection, _tables(applied_version(connection))).problems)
        step.detail = f"ready after {ready_ms} ms, ran a task, stopped in order"

    def _unpacked(self, wheel: Wheel) -> Release:
        folder = self.scratch / "wheel"
        with zipfile.ZipFile(wheel.path) as archive:
            archive.extractall(folder)
        return Release(str(folder), tuple(node_command()))

    def _expect(self, step: Step, problems: Sequence[str]) -> None:
        if problems:
            self.report.problems += [f"{step.name}: {problem}" for problem in problems]
            raise _StepFailedError


@contextmanager
def _opened(database: Path) -> Iterator[apsw.Connection]:
    connection = open_connection(database, "")
    try:
        yield connection
    finally:
        connection.close(True)


def _tables(schema: int) -> tuple[Table, ...]:
    return declared_at(WORK_TABLES, schema)


def _differences(before: ReplicaCheck, after: ReplicaCheck) -> list[str]:
    """What is there no longer, or is another: sums compare every bit of every row."""
    found = [
        f"{before.rows[table]} rows of {table} became {after.rows.get(table, 0)}"
        for table in before.rows
        if before.rows[table] != after.rows.get(table, 0)
    ]
    if not found and after.sums != before.sums:
        found.append("the sums of the rows' digests differ")
    return found


def _named(changes: Changes) -> str:
    named = [*changes.migrations, *(f"table {name}" for name in changes.tables), *changes.columns]
    return f"with {', '.join(named)}" if named else "nothing to change"
