"""Goal: the schema of a real database is shown and taken back, only while its node is stopped, never without a copy."""

from __future__ import annotations

import apsw
import pytest

from node.root_lock import root_lock
from node.storage.database import APPLICATION_ID, open_connection
from node.storage.migrate import applied_version, load_migrations, migrate_up
from node.storage.schema import apply_declarations
from node.work.tables import WORK_TABLES

NEWEST = load_migrations()[-1].version


@pytest.fixture
def root(tmp_path):
    connection = open_connection(tmp_path / "relaymesh.db", "")
    with connection:
        migrate_up(connection, load_migrations()[:1], now_ms=1)
        apply_declarations(connection, WORK_TABLES)
        migrate_up(connection, load_migrations(), now_ms=1)
        connection.execute("INSERT INTO meta VALUES ('kept', x'01')")
    connection.pragma("application_id", APPLICATION_ID)
    connection.close()
    return tmp_path


def version_of(path):
    connection = apsw.Connection(str(path))
    try:
        return applied_version(connection), connection.execute("SELECT value FROM meta WHERE name = 'kept'").get
    finally:
        connection.close()


def test_migrations_are_listed_in_order(root, relaymesh):
    listed = relaymesh("--root", root, "schema-migrations", "--json").json

    assert [each["version"] for each in listed] == list(range(1, NEWEST + 1))
    assert all(each["success"] and each["description"] for each in listed)


def test_a_rollback_leaves_a_copy_and_this_release_finds_its_way_forward_again(root, relaymesh):
    answer = relaymesh("--root", root, "schema-rollback", "--version", "1", "--json").json

    assert (answer["previousVersion"], answer["version"]) == (NEWEST, 1)
    assert version_of(root / "relaymesh.db") == (1, b"\x01")
    assert version_of(answer["backup"]) == (NEWEST, b"\x01")
    connection = open_connection(root / "relaymesh.db", "")
    migrate_up(connection, load_migrations(), now_ms=2)
    assert applied_version(connection) == NEWEST
    connection.close()


@pytest.mark.parametrize("version", ["0", str(NEWEST), "99", "x"])
def test_a_version_that_is_no_way_back_changes_nothing(root, relaymesh, version):
    ran = relaymesh("--root", root, "schema-rollback", "--version", version)

    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert version_of(root / "relaymesh.db")[0] == NEWEST
    assert list(root.glob("*.schema-*")) == []


def test_a_root_in_use_or_without_database_is_refused(root, relaymesh, tmp_path):
    with root_lock(root):
        ran = relaymesh("--root", root, "schema-rollback", "--version", "1")
    assert (ran.code, version_of(root / "relaymesh.db")[0]) == (2, NEWEST)
    assert "stop it" in ran.err
    for command in (["schema-migrations"], ["schema-rollback", "--version", "1"]):
        ran = relaymesh("--root", tmp_path / "absent", *command)
        assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert not (tmp_path / "absent").exists()


def test_a_copy_that_is_there_already_is_never_overwritten(root, relaymesh):
    (root / f"relaymesh.db.schema-{NEWEST}").write_text("older copy")
    ran = relaymesh("--root", root, "schema-rollback", "--version", "1")

    assert (ran.code, version_of(root / "relaymesh.db")[0]) == (2, NEWEST)
    assert (root / f"relaymesh.db.schema-{NEWEST}").read_text() == "older copy"
