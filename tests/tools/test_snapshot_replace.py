"""Goal: a snapshot takes a database's place whole, or not at all, and what was there is kept. Method: real databases,
and a process that dies before each thing that it does to files."""

from __future__ import annotations

import shutil
import sys
from contextlib import contextmanager

import pytest

from mesh.errors import ConfigError
from node import identity_files, snapshots
from node.root_lock import root_lock
from node.storage import set_aside
from node.storage.backup import RESTORED_META
from node.storage.database import APPLICATION_ID, open_connection
from node.storage.migrate import load_migrations, migrate_up
from node.storage.schema import apply_declarations
from node.work.tables import WORK_TABLES


def make_root(root, node_id="node-a", mesh=None):
    """A root whose node was killed: its last word, `who`, is in the log."""
    running = root.with_name(f"{root.name}-running")
    running.mkdir()
    identity_files.found(running, node_id)
    connection = open_connection(running / "relaymesh.db", "")
    with connection:
        migrate_up(connection, load_migrations()[:1], now_ms=1)
        apply_declarations(connection, WORK_TABLES)
        migrate_up(connection, load_migrations(), now_ms=1)
    connection.pragma("application_id", APPLICATION_ID)
    connection.wal_checkpoint()
    say(connection, b"snapshot")
    snapshots.export(running, root.with_name(f"{root.name}-snapshot"), with_identity=False, now_ms=1)
    say(connection, b"old")
    shutil.copytree(running, root, ignore=shutil.ignore_patterns("*-shm"))
    connection.close()
    (root / "origin").write_text("a marker")
    (root / "relaymesh-settings.json").write_text("{}")
    return root


def say(connection, word):
    with connection:
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('who', ?)", (word,))


def words(path):
    """What a database says of itself, read on a copy: looking changes nothing."""
    copy = path.with_name("looked-at")
    shutil.copyfile(path, copy)
    log = path.with_name(f"{path.name}-wal")
    if log.exists():
        shutil.copyfile(log, copy.with_name("looked-at-wal"))
    connection = open_connection(copy, "")
    try:
        assert connection.execute("PRAGMA integrity_check").get == "ok"
        return dict(connection.execute("SELECT name, value FROM meta WHERE name IN ('who', ?)", (RESTORED_META,)))
    finally:
        connection.close()
        for left in path.parent.glob("looked-at*"):
            left.unlink()


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "data")


@pytest.fixture
def source(root):
    return root.with_name("data-snapshot")


def test_the_snapshot_takes_the_place_and_the_old_database_is_kept(root, source, relaymesh):
    identity = (root / "identity.json").read_bytes()

    made = relaymesh("--root", root, "snapshot-import", "--in", source, "--replace", "--json").json

    assert words(root / "relaymesh.db")["who"] == b"snapshot"
    assert RESTORED_META in words(root / "relaymesh.db")  # so its first start opens a new cluster epoch
    assert not (root / "origin").exists()  # and takes a new origin
    assert made["keptDatabase"] == str(root / "relaymesh.db.replaced-1")
    assert words(root / "relaymesh.db.replaced-1") == {"who": b"old"}
    assert (root / "identity.json").read_bytes() == identity
    assert sorted(path.name for path in root.glob("relaymesh*")) == [
        *("relaymesh-settings.json", "relaymesh.db", "relaymesh.db.replaced-1"),
    ]
    assert relaymesh("--root", root, "snapshot-import", "--in", source, "--replace").code == 0
    assert words(root / "relaymesh.db.replaced-2")["who"] == b"snapshot"


def test_a_damaged_database_is_kept_with_its_log(root, source, relaymesh):
    (root / "relaymesh.db").write_bytes(b"x" * 4_096)
    log = (root / "relaymesh.db-wal").read_bytes()
    assert relaymesh("--root", root, "snapshot-import", "--in", source, "--replace").code == 0
    assert words(root / "relaymesh.db")["who"] == b"snapshot"
    assert (root / "relaymesh.db.replaced-1").read_bytes() == b"x" * 4_096
    assert (root / "relaymesh.db.replaced-1-wal").read_bytes() == log


def test_nothing_is_replaced_under_a_running_node(root, source, relaymesh):
    with root_lock(root):
        ran = relaymesh("--root", root, "snapshot-import", "--in", source, "--replace")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "stop it" in ran.err
    assert words(root / "relaymesh.db") == {"who": b"old"}
    assert (root / "origin").exists()


def test_what_does_not_fit_changes_nothing(root, source, relaymesh, tmp_path):
    other = make_root(tmp_path / "other", "node-b")
    (tmp_path / "empty").mkdir()
    shutil.copytree(source, tmp_path / "spoilt")
    data = bytearray((source / "relaymesh.db").read_bytes())
    data[5_000] ^= 1
    (tmp_path / "spoilt" / "relaymesh.db").write_bytes(data)
    for target, snapshot, word in (
        (other, source, "node-b"),
        (tmp_path / "empty", source, "leave out --replace"),
        (root, tmp_path / "spoilt", "altered"),
    ):
        ran = relaymesh("--root", target, "snapshot-import", "--in", snapshot, "--replace")
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert word in ran.err
    assert words(root / "relaymesh.db") == words(other / "relaymesh.db") == {"who": b"old"}
    assert list((tmp_path / "empty").iterdir()) == []


class Killed(BaseException):
    pass


_CHANGES = ("os.link", "os.remove", "os.rename", "os.chmod", "shutil.copyfile")


@contextmanager
def dies_before(step):
    """Process death as files see it: before its change number `step` the block ends, and changes nothing any more.

    Gives a list of the changes that were made.
    """
    changes: list[str] | None = []

    def watch(event, args):
        if changes is None or event not in _CHANGES:
            return
        if len(changes) >= step:
            raise Killed
        changes.append(event)

    sys.addaudithook(watch)  # it stays for good, and is silent after the block
    try:
        yield changes
    finally:
        changes = None


@pytest.mark.parametrize("damaged", [False, True])
def test_a_death_at_any_step_leaves_one_of_the_two(root, source, tmp_path, damaged):
    if damaged:
        (root / "relaymesh.db").write_bytes(b"x" * 4_096)
    found = []
    for step in range(100):
        there = tmp_path / f"try-{step}"
        shutil.copytree(root, there)
        with dies_before(step) as changes:
            try:
                snapshots.replace(source, there)
            except Killed:
                pass
        database = there / "relaymesh.db"
        is_new = database.read_bytes()[:1] != b"x" if damaged else words(database)["who"] != b"old"
        found.append(is_new)
        if is_new:
            assert not (there / "origin").exists()
            assert not (there / "relaymesh.db-wal").exists()
            assert words(database)["who"] == b"snapshot"
        if len(changes) < step:
            break
        snapshots.replace(source, there)
        assert words(database)["who"] == b"snapshot"
        kept = sorted(path.name for path in there.iterdir() if "replaced" in path.name and "-wal" not in path.name)
        assert kept == ["relaymesh.db.replaced-1", *(["relaymesh.db.replaced-2"] if is_new else [])]
        first = there / kept[0]
        assert first.read_bytes() == b"x" * 4_096 if damaged else words(first) == {"who": b"old"}
        if damaged:
            assert first.with_name(f"{first.name}-wal").read_bytes() == (root / "relaymesh.db-wal").read_bytes()
        assert not list(there.glob("*restoring*"))
    else:
        pytest.fail("it never ended")
    assert found == sorted(found)
    assert found[0] is False
    assert found[-1] is True
    assert len(found) > 5


def test_a_file_system_that_cannot_link_keeps_the_old_database(root, source, monkeypatch):
    def refuse(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(set_aside.os, "link", refuse)
    with pytest.raises(ConfigError, match="stays"):
        snapshots.replace(source, root)
    assert words(root / "relaymesh.db") == {"who": b"old"}
    assert not list(root.glob("*re[ps]*"))
