"""The schema: migrations forward and back, declarations, and databases that are not ours to touch."""

from __future__ import annotations

import hashlib

import apsw
import pytest

from mesh.errors import ConfigError
from mesh.tables import Column, Register, Table
from node.storage.database import APPLICATION_ID, open_connection
from node.storage.migrate import Migration, applied_version, load_migrations, migrate_down, migrate_up
from node.storage.schema import apply_declarations, create_table_sql, table_differences, table_sql

EXTRA = Migration(2, "a test", "CREATE TABLE extra (x INTEGER) STRICT;\n", "DROP TABLE extra;\n")


@pytest.fixture
def connection(tmp_path):
    connection = open_connection(tmp_path / "relaymesh.db", "")
    yield connection
    connection.close()


def tables_of(connection):
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def fingerprint(root):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.iterdir()}


def test_migrations_of_this_release_go_up_and_down(connection):
    migrations = load_migrations()
    assert migrations[0].description

    migrate_up(connection, migrations[:1], now_ms=5)
    assert {"meta", "origins", "vector", "quarantine", "members"} <= tables_of(connection)
    assert applied_version(connection) == 1
    rows = list(
        connection.execute("SELECT version, description, checksum, applied_at_ms, success FROM schema_migrations")
    )
    assert rows == [(1, migrations[0].description, migrations[0].checksum, 5, 1)]

    migrate_down(connection, migrations[:1], to_version=0)
    assert tables_of(connection) == {"schema_migrations"}
    assert applied_version(connection) == 0


def test_only_missing_migrations_run(connection):
    migrations = (*load_migrations()[:1], EXTRA)
    migrate_up(connection, migrations[:1], now_ms=1)
    migrate_up(connection, migrations, now_ms=2)
    migrate_up(connection, migrations, now_ms=3)

    assert list(connection.execute("SELECT version, applied_at_ms FROM schema_migrations")) == [(1, 1), (2, 2)]
    migrate_down(connection, migrations, to_version=1)
    assert "extra" not in tables_of(connection)
    assert applied_version(connection) == 1


async def test_a_newer_schema_is_left_alone_with_a_clear_error(world):
    async with world.opened(migrations=(*load_migrations()[:1], EXTRA)) as store:
        await store.write(lambda tx: tx.meta_set("a", b"1"))
    before = fingerprint(world.root)

    with pytest.raises(ConfigError, match=r"newer RelayMesh \(schema 2, this one knows 1\).*install") as caught:
        await world.store().open()

    assert "Nothing was changed" in str(caught.value)
    assert fingerprint(world.root) == before


async def test_a_column_of_a_newer_release_is_left_alone_with_a_clear_error(world):
    base = world.store()._tables
    newer = (Table("notes", Register.LWW, (*base[0].columns, Column("of_tomorrow"))), *base[1:])
    async with world.opened(tables=newer):
        pass

    with pytest.raises(ConfigError, match="newer RelayMesh"):
        await world.store().open()
    async with world.opened(tables=newer):
        pass


async def test_an_edited_migration_is_noticed(world):
    first = load_migrations()[0]
    async with world.opened():
        pass
    edited = Migration(1, first.description, first.up + "-- edited\n", first.down)

    with pytest.raises(ConfigError, match="another form of migration 1"):
        await world.store(migrations=(edited,)).open()


async def test_a_migration_that_fails_leaves_nothing_behind(world):
    broken = Migration(2, "broken", "CREATE TABLE half (x INTEGER); SELECT no_such_function();", "")

    with pytest.raises(apsw.SQLError):
        await world.store(migrations=(*load_migrations()[:1], broken)).open()

    async with world.opened() as store:
        names = await store.read(lambda reader: reader.sql("SELECT name FROM sqlite_master WHERE name = 'half'"))
        assert names == []


async def test_a_database_of_another_program_is_not_touched(world):
    connection = apsw.Connection(str(world.root / "relaymesh.db"))
    connection.execute("CREATE TABLE schema_migrations (version INTEGER); CREATE TABLE tasks (x)")
    connection.close()
    before = fingerprint(world.root)

    with pytest.raises(ConfigError, match="another program"):
        await world.store().open()

    assert fingerprint(world.root) == before


async def test_a_file_that_is_no_database_is_not_touched(world):
    (world.root / "relaymesh.db").write_bytes(b"not a database" * 100)
    before = fingerprint(world.root)

    with pytest.raises(ConfigError, match="cannot be used"):
        await world.store().open()

    assert fingerprint(world.root) == before


async def test_a_damaged_database_is_refused_with_what_to_do(world):
    async with world.opened(crash=True) as store:
        for number in range(200):
            await store.write(lambda tx, n=number: tx.put("notes", "default", f"k{n}", {"body": bytes(2_000)}))
        await store._env.writer_thread.run(store._writer.checkpoint)
    path = world.root / "relaymesh.db"
    data = bytearray(path.read_bytes())
    for page in range(20, len(data) // 4096):
        data[page * 4096 : page * 4096 + 100] = b"\xee" * 100
    path.write_bytes(bytes(data))

    with pytest.raises(ConfigError, match=r"cannot be used.*move the file away"):
        await world.store().open()


def no_room_for_the_index() -> apsw.IOError:
    error = apsw.IOError("disk I/O error")
    error.extendedresult = apsw.SQLITE_IOERR_SHMSIZE  # as SQLite says it on a full disk
    return error


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (apsw.FullError("no"), "free some space"),
        (no_room_for_the_index(), "free some space"),
        (apsw.ReadOnlyError("no"), "writable"),
        (apsw.BusyError("no"), "another program"),
    ],
)
async def test_a_sound_database_that_cannot_be_used_now_is_not_to_be_moved_away(world, monkeypatch, error, remedy):
    async with world.opened():
        pass

    def refuse(*_, **_options):
        raise error

    monkeypatch.setattr("node.storage.writer.upgrade", refuse)
    with pytest.raises(ConfigError, match=remedy) as refusal:
        await world.store().open()
    assert "move" not in str(refusal.value)


async def test_a_missing_folder_is_told(world):
    store = world.store()
    store._writer._path = world.root / "no" / "relaymesh.db"
    with pytest.raises(ConfigError, match="cannot open the database"):
        await store.open()


def test_every_connection_has_every_setting(tmp_path):
    for read_only in (False, True):
        connection = open_connection(tmp_path / "relaymesh.db", "", read_only=read_only)
        assert connection.pragma("journal_mode") == "wal"
        assert connection.pragma("synchronous") == 2
        assert connection.pragma("wal_autocheckpoint") == 0
        assert connection.pragma("foreign_keys") == 0
        assert connection.pragma("query_only") == read_only
        connection.close()


def test_a_setting_that_does_not_hold_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("node.storage.database._SETTINGS", (("journal_mode", "wal"), ("synchronos", 2)))
    with pytest.raises(AssertionError, match="synchronos"):
        open_connection(tmp_path / "relaymesh.db", "")


def test_declared_tables_are_strict_and_have_no_indexes_but_those_of_the_engine(connection):
    table = Table("things", Register.LWW, (Column("a"), Column("order", "int")))
    connection.execute(create_table_sql(table))

    assert table_differences(connection, table) == []
    assert " STRICT" in connection.execute("SELECT sql FROM sqlite_master WHERE name = 'things'").get
    indexes = {name for (name,) in connection.execute("SELECT name FROM pragma_index_list('things')")}
    assert indexes == {"things_key", "things_dot", "things_deleted"}
    with pytest.raises(apsw.ConstraintError):
        connection.execute(table_sql(table).insert, (*range(7), "node", 1, 1, 1, 1, b"no text", 1, None, "ns", "k"))


def test_columns_that_the_declaration_gained_are_added(connection):
    old = Table("things", Register.LWW, (Column("a"),))
    new = Table("things", Register.LWW, (Column("a"), Column("b", "int")))
    apply_declarations(connection, [old])
    assert table_differences(connection, new) == ["things.b is missing, expected INTEGER"]

    apply_declarations(connection, [new])

    assert table_differences(connection, new) == []


@pytest.mark.parametrize("column", ["node", "key", "ext", "d1", "Upper", 'a"b'])
def test_columns_that_would_clash_with_metadata_are_a_broken_promise(column):
    with pytest.raises(AssertionError):
        create_table_sql(Table("things", Register.LWW, (Column(column),)))


def test_our_files_are_marked(connection, tmp_path):
    assert APPLICATION_ID.to_bytes(4, "big") == b"RMES"
