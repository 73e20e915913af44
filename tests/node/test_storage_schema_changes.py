"""The way to another release's form of a database and back: nothing replicated is lost, and no digest changes."""

from __future__ import annotations

from contextlib import closing

import apsw
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ConfigError
from mesh.row_codec import encode_values
from mesh.tables import Column, Register, Table, declared_at
from node.replication.verify import serve_ranges, serve_rows, serve_verify, verify
from node.storage.database import open_connection
from node.storage.migrate import Migration, applied_version, load_migrations
from node.storage.schema import apply_declarations, table_differences
from node.storage.schema_changes import roll_back, upgrade
from node.storage.store import RELEASE_ROWS_MAX
from tests.node.conftest import STORE_TABLES, StoreWorld, TestDisk

OLDER = load_migrations()[:1]
NEWER = (
    *OLDER,
    Migration(2, "a test", "CREATE INDEX notes_mood ON notes (mood);", "DROP INDEX notes_mood;"),
)
NOTES, *REST = STORE_TABLES
NEWER_TABLES = (
    Table("notes", Register.LWW, (*NOTES.columns, Column("mood", since=2), Column("picture", "blob", since=2))),
    *REST,
    Table("ballots", Register.LWW, (Column("choice"),), since=2),
)


def roll_back_file(root, to_version=1):
    connection = open_connection(root / "relaymesh.db", "")
    try:
        connection.execute("BEGIN IMMEDIATE")
        roll_back(connection, NEWER_TABLES, NEWER, to_version=to_version, now_ms=9)
        connection.execute("COMMIT")
    finally:
        connection.close(True)


def newer(world, **options):
    return world.opened(tables=NEWER_TABLES, migrations=NEWER, **options)


async def test_a_way_back_and_forth_loses_no_row_no_value_and_changes_no_digest(world):
    async with newer(world) as store:
        plain = await store.write(lambda tx: tx.put("notes", "default", "plain", {"text": "a"}))
        values = {"text": "a", "mood": "sunny", "picture": b"\0"}
        rich = await store.write(lambda tx: tx.put("notes", "default", "k", values))
        gone = await store.write(lambda tx: tx.put("notes", "default", "gone", {"mood": "x"}))
        gone = await store.write(lambda tx: tx.put("notes", "default", "gone", {}, deleted=True))
        ballot = await store.write(lambda tx: tx.put("ballots", "default", "b", {"choice": "yes"}))
        sums, of_older = await store.read(lambda reader: (reader.sums(), reader.sums(1)))
        vector = store.vector.copy()

    roll_back_file(world.root)
    async with world.opened() as store:
        assert store.vector == vector
        assert await store.read(lambda reader: reader.sums()) == of_older
        assert [await store.read(lambda r, k=k: r.get("notes", "default", k)) for k in ("plain", "k", "gone")] == [
            *(plain, rich, gone)
        ]
        assert await store.read(lambda r: r.sql("SELECT reason, key FROM quarantine")) == [("unknown-table", "b")]
        edited = await store.write(lambda tx: tx.put("notes", "default", "k", {"text": "b"}))
        assert edited.values == {"text": "b", "mood": "sunny", "picture": b"\0"}

    async with newer(world) as store:
        await trio.testing.wait_all_tasks_blocked()
        assert await store.read(lambda reader: reader.get("ballots", "default", "b")) == ballot
        assert await store.read(lambda reader: reader.select("notes", "mood = 'sunny'")) == [edited]
        after = await store.read(lambda reader: reader.sums())
        assert [total[0] for total in after.values()] == [total[0] for total in sums.values()]


async def test_a_database_that_never_knew_the_newer_release_looks_the_same_as_one_rolled_back(world, tmp_path):
    async with newer(world):
        pass
    roll_back_file(world.root)
    fresh = StoreWorld(tmp_path / "fresh", TestDisk(tmp_path / "fresh"))
    fresh.root.mkdir()
    async with fresh.opened():
        pass
    shapes = []
    for each in (world, fresh):
        connection = open_connection(each.root / "relaymesh.db", "")
        shapes.append(
            [
                (kind, name, [row[1:] for row in connection.execute(f'PRAGMA table_info("{name}")')])
                for kind, name in connection.execute("SELECT type, name FROM sqlite_master ORDER BY 1, 2")
            ]
        )
        assert [table_differences(connection, table) for table in STORE_TABLES] == [[]] * len(STORE_TABLES)
        connection.close(True)
    assert shapes[0] == shapes[1]


VALUES = st.dictionaries(
    st.sampled_from(["text", "mood", "picture", "of_later"]), st.text(max_size=3).map(str), max_size=4
)


@given(VALUES)
def test_any_values_of_columns_that_leave_wait_among_the_unknown_ones_and_come_back(values):
    connection = apsw.Connection(":memory:")
    table = Table("notes", Register.LWW, (Column("text"), Column("mood", since=2), Column("picture", since=2)))
    upgrade(connection, (table,), OLDER, now_ms=1)
    known = {name: value for name, value in values.items() if name in table.kinds}
    rest = {name: value for name, value in values.items() if name not in table.kinds}
    insert(connection, known, rest)
    before = stored(connection)
    connection.execute("INSERT INTO schema_migrations VALUES (2, 'd', ?, 1, 1)", (EMPTY.checksum,))
    roll_back(connection, (table,), (*OLDER, EMPTY), to_version=1, now_ms=2)
    assert set(stored(connection)) == {"text"} & set(values) | ({"ext"} if set(values) - {"text"} else set())
    apply_declarations(connection, (table,))
    assert stored(connection) == before


EMPTY = Migration(2, "columns of a test", "", "")


def insert(connection, known, rest):
    names = "".join(f', "{name}"' for name in known)
    connection.execute(
        "INSERT INTO notes (namespace, key, generation, deleted, rank, cluster_epoch, lease_epoch, lease_hlc, hlc, "
        f"node, oid, seq, d1, d2, ext{names}) "
        f"VALUES ('n', 'k', 0, 0, 0, 0, 0, 0, 1, 'a', 1, 1, 1, 1, ?{', ?' * len(known)})",
        (encode_values(rest) if rest else None, *known.values()),
    )


def stored(connection):
    columns = [name for name in ("text", "mood", "picture", "ext") if name in column_names(connection)]
    (found,) = connection.execute(f"SELECT {', '.join(columns)} FROM notes")
    return {name: value for name, value in zip(columns, found, strict=True) if value is not None}


def column_names(connection):
    return [row[1] for row in connection.execute("PRAGMA table_info(notes)")]


@pytest.mark.parametrize("version", [0, 3, -1])
async def test_a_version_that_there_is_no_way_back_to_is_refused(world, version):
    async with newer(world):
        pass
    with pytest.raises(ConfigError, match=rf"schema 2, and cannot be rolled back to {version}: give .* from 1 to 2"):
        roll_back_file(world.root, version)
    async with newer(world):
        pass


async def test_rows_of_a_leaving_table_up_to_what_is_kept_aside_may_leave_and_one_more_refuses(world, monkeypatch):
    async with newer(world) as store:
        for number in range(3):
            await store.write(lambda tx, n=number: tx.put("ballots", "default", f"b{n}", {"choice": "no"}))
    monkeypatch.setattr("node.storage.schema_changes.QUARANTINE_ROWS_MAX", 2)
    with pytest.raises(ConfigError, match=r"3 rows of ballots.*more than the 2 .*no way back"):
        roll_back_file(world.root)
    async with newer(world) as store:
        assert len(await store.read(lambda reader: reader.select("ballots"))) == 3
    monkeypatch.setattr("node.storage.schema_changes.QUARANTINE_ROWS_MAX", 3)
    roll_back_file(world.root)
    connection = open_connection(world.root / "relaymesh.db", "")
    assert applied_version(connection) == 1
    connection.close(True)


async def test_all_rows_of_a_table_come_back_after_an_upgrade_however_many_waited(world, autojump_clock):
    count = 2 * RELEASE_ROWS_MAX + 1
    async with newer(world) as store:
        await store.write(
            lambda tx: [tx.put("ballots", "default", f"b{n}", {"choice": "no"}) for n in range(count)] and None
        )
    roll_back_file(world.root)
    async with newer(world) as store:
        await trio.sleep(5)
        assert len(await store.read(lambda reader: reader.select("ballots"))) == count
        assert await store.read(lambda reader: reader.sql("SELECT count(*) FROM quarantine")) == [(0,)]


class Calls:
    """Asks another store directly."""

    def __init__(self, store) -> None:
        self.store = store

    async def call(self, address, verb, body, **more):
        return await {"verify": serve_verify, "ranges": serve_ranges, "rows": serve_rows}[verb](self.store, body)


@pytest.mark.parametrize("asker", ["older", "newer"])
async def test_releases_that_know_different_tables_compare_the_tables_of_both(world, tmp_path, asker):
    other = StoreWorld(tmp_path / "other", TestDisk(tmp_path / "other"))
    other.root.mkdir()
    async with newer(world) as new, other.opened("node-b") as old:
        rows = [
            await new.write(lambda tx: tx.put("notes", "default", "k", {"text": "a", "mood": "sunny"})),
            await new.write(lambda tx: tx.put("ballots", "default", "b", {"choice": "yes"})),
        ]
        for row in rows:
            await old.write(lambda tx, row=row: tx.merge(row), remote=True)
        one, two = (old, new) if asker == "older" else (new, old)
        result = await verify(one, Calls(two), "x", None, schema=min(one.schema, two.schema))
        assert (result.compared, result.differing_ranges) == (True, 0)

        old._writer.ledger.connection.execute("DELETE FROM notes")
        result = await verify(old, Calls(new), "x", None, schema=1)
        assert (result.differing_ranges, result.repaired_rows) == (1, 1)


async def test_an_index_over_a_leaving_column_leaves_with_it_and_others_stay(world):
    async with newer(world):
        pass
    with closing(open_connection(world.root / "relaymesh.db", "")) as connection:
        connection.execute(
            "CREATE INDEX notes_both ON notes (namespace, picture); CREATE INDEX notes_text ON notes (text)"
        )
    roll_back_file(world.root)
    with closing(open_connection(world.root / "relaymesh.db", "")) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE tbl_name = 'notes'")}
    assert "notes_both" not in names
    assert {"notes_key", "notes_dot", "notes_text"} <= names


def test_declarations_of_an_older_schema_lack_what_came_later():
    assert [table.name for table in declared_at(NEWER_TABLES, 1)] == ["notes", "jobs", "facts"]
    assert declared_at(NEWER_TABLES, 1)[0].column_names() == NOTES.column_names()
    assert declared_at(NEWER_TABLES, 2) == NEWER_TABLES
