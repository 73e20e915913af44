"""A rehearsal finds what an upgrade would do and break, reads the root only, and refuses what it cannot rehearse."""

import dataclasses
import hashlib
import shutil
from contextlib import closing

import apsw
import pytest
import trio

from mesh.tables import Column, Register, Table
from node.storage.migrate import Migration, load_migrations
from node.work.tables import TASKS, WORK_TABLES
from tests.node.work_desk import desks, workflow
from tools import upgrade_rehearsal
from tools.root_copy import copy_database
from tools.upgrade_rehearsal import read_wheel

MIGRATIONS = load_migrations()
SCHEMA = MIGRATIONS[-1].version
NEXT = SCHEMA + 1


@pytest.fixture(scope="module")
def kept_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roots")

    async def work():
        async with desks(folder, "a") as (a,):
            await a.submit(workflow(x=[], y=["x"]))
            await a.one(key="other")

    trio.run(work)
    (root,) = (path.parent for path in folder.rglob("relaymesh.db"))
    (root / "node.lock").touch()
    return root


@pytest.fixture
def root(kept_root, tmp_path):
    return shutil.copytree(kept_root, tmp_path / "root")


@pytest.fixture
def no_nodes(monkeypatch):
    """Leave out the throwaway nodes, which take most of the time."""
    monkeypatch.setattr(upgrade_rehearsal._Rehearsal, "_run_node", lambda *_: None)


def tomorrow(monkeypatch, *, up=""):
    """Let this release be one that knows a table and a column more."""
    tasks = dataclasses.replace(TASKS, columns=(*TASKS.columns, Column("mood", since=NEXT)))
    tables = (tasks, *WORK_TABLES[1:], Table("diary", Register.LWW, (Column("entry"),), since=NEXT))
    monkeypatch.setattr(upgrade_rehearsal, "WORK_TABLES", tables)
    monkeypatch.setattr(
        upgrade_rehearsal, "load_migrations", lambda: (*MIGRATIONS, Migration(NEXT, "of tomorrow", up, ""))
    )


def fingerprint(root):
    return {
        path.relative_to(root): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in root.rglob("*")
        if path.is_file()
    }


def test_an_upgrade_is_tried_on_a_copy_and_the_root_is_as_it_was(root, tmp_path, relaymesh, monkeypatch, no_nodes):
    tomorrow(monkeypatch)
    before = fingerprint(root)

    ran = relaymesh("upgrade-rehearsal", "--root", root, "--out", tmp_path / "out", "--json")

    report = ran.json
    assert (ran.code, report["ok"], report["problems"]) == (0, True, [])
    assert (report["fromSchema"], report["toSchema"], report["backToSchema"]) == (SCHEMA, NEXT, SCHEMA)
    assert report["changes"] == {"migrations": [f"{NEXT} of tomorrow"], "tables": ["diary"], "columns": ["tasks.mood"]}
    assert (report["rows"]["tasks"], report["rows"]["steps"]) == (2, 3)
    assert [step["ok"] for step in report["steps"]] == [True] * 5
    assert min(report["bytes"].values()) > 0
    assert fingerprint(root) == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.json", "summary.txt"]
    assert "new column tasks.mood" in (tmp_path / "out" / "summary.txt").read_text()


@pytest.mark.slow
def test_a_throwaway_node_runs_on_the_copy_and_leaves_nothing_but_its_log(root, tmp_path, relaymesh):
    ran = relaymesh("upgrade-rehearsal", "--root", root, "--out", tmp_path / "out")

    assert ran.code == 0, ran.out
    assert "ran a task, stopped in order" in ran.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["node.log", "report.json", "summary.txt"]


def test_work_that_only_the_log_holds_is_part_of_the_copy(root, tmp_path):
    log_only = tmp_path / "killed"
    log_only.mkdir()
    with closing(apsw.Connection(str(root / "relaymesh.db"))) as database:
        database.execute("INSERT INTO meta VALUES ('late', x'01')")
        for path in root.glob("relaymesh.db*"):
            if not path.name.endswith("-shm"):
                shutil.copyfile(path, log_only / path.name)
    before = fingerprint(log_only)

    assert copy_database(log_only, tmp_path / "copy.db") is False
    with closing(apsw.Connection(str(tmp_path / "copy.db"))) as copy:
        assert copy.execute("SELECT value FROM meta WHERE name = 'late'").get == b"\x01"
    assert fingerprint(log_only) == before


def test_a_row_that_does_not_hold_is_named(root, tmp_path, relaymesh, no_nodes):
    with closing(apsw.Connection(str(root / "relaymesh.db"))) as database:
        key = database.execute("SELECT key FROM steps LIMIT 1").get
        database.execute("UPDATE steps SET agent = 'other' WHERE key = ?", (key,))

    ran = relaymesh("upgrade-rehearsal", "--root", root, "--out", tmp_path / "out", "--json")

    assert (ran.code, ran.json["ok"]) == (1, False)
    assert ran.json["problems"] == [
        f"check what it holds: row {key!r} of steps has another digest than the one stored with it"
    ]
    assert [step["ok"] for step in ran.json["steps"]] == [True, False]


@pytest.mark.parametrize(
    ("up", "told"),
    [("SELECT no_such_function();", "no such function"), ("DELETE FROM steps;", "3 rows of steps became 0")],
)
def test_a_faulty_migration_is_found(root, tmp_path, relaymesh, monkeypatch, no_nodes, up, told):
    tomorrow(monkeypatch, up=up)

    ran = relaymesh("upgrade-rehearsal", "--root", root, "--out", tmp_path / "out")

    assert ran.code == 1
    assert "It does NOT hold" in ran.out
    assert told in ran.out
    assert "FAIL" in ran.out


def newer_database(root):
    with closing(apsw.Connection(str(root / "relaymesh.db"))) as database:
        database.execute("INSERT INTO schema_migrations VALUES (99, 'of later', 'x', 1, 1)")


def no_database(root):
    (root / "relaymesh.db").unlink()


def foreign_database(root):
    (root / "relaymesh.db").unlink()
    with closing(apsw.Connection(str(root / "relaymesh.db"))) as database:
        database.execute("CREATE TABLE theirs (x)")


def no_text(root):
    (root / "relaymesh.db").write_bytes(b"no database" * 500)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (no_database, "holds no relaymesh.db: give the --root of a node that ran"),
        (newer_database, "written by a newer RelayMesh (schema 99"),
        (foreign_database, "a database of another program"),
        (no_text, "cannot be used"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused_in_one_line_and_leaves_nothing(root, tmp_path, relaymesh, spoil, told):
    spoil(root)
    ran = relaymesh("upgrade-rehearsal", "--root", root, "--out", tmp_path / "out")
    assert ran.code == 2
    assert told in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_taken_or_inside_the_root_or_too_small_is_refused(root, tmp_path, relaymesh, monkeypatch):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    before = fingerprint(root)
    for out, told in ((full, "not empty"), (root / "out", "inside the root"), (full / "file", "not empty")):
        ran = relaymesh("upgrade-rehearsal", "--root", root, "--out", out)
        assert (ran.code, told in ran.err) == (2, True), ran.err
    monkeypatch.setattr(upgrade_rehearsal, "COPIES", 1 << 60)
    ran = relaymesh("upgrade-rehearsal", "--root", root, "--out", tmp_path / "new")
    assert (ran.code, "bytes free, and a rehearsal needs" in ran.err) == (2, True), ran.err
    assert not (tmp_path / "new").exists()
    assert fingerprint(root) == before


@pytest.mark.parametrize("name", ["relaymesh-1.0-py3-none-any.whl", "other.whl"])
def test_what_is_no_wheel_of_ours_is_refused(root, tmp_path, relaymesh, name):
    (tmp_path / name).write_bytes(b"PK no wheel")
    ran = relaymesh("upgrade-rehearsal", "--root", root, "--out", tmp_path / "out", "--wheel", tmp_path / name)
    assert ran.code == 2
    assert name in ran.err
    assert not (tmp_path / "out").exists()


def test_the_kept_wheel_says_which_release_and_schema_it_is(request):
    (kept,) = (request.config.rootpath / "tests" / "releases").glob("*.whl")
    wheel = read_wheel(kept)
    assert (wheel.release, wheel.schema) == (kept.name.split("-")[1], 3)


def test_a_root_must_be_named(tmp_path, relaymesh):
    ran = relaymesh("upgrade-rehearsal", "--out", tmp_path / "out")
    assert (ran.code, "give --root DIR" in ran.err) == (2, True)
