"""Who a database is after each way of ending: kept when nothing can be lost, new in every doubt."""

from __future__ import annotations

import shutil

import apsw
import pytest

from mesh.ids import Origin
from node.storage.origins import Marker, MarkerFile, OriginTable

FILES = ("relaymesh.db", "relaymesh.db-wal", "origin")


def note(tx):
    return tx.put("notes", "default", "k", {"text": "x"})


async def origin_after(world, **options):
    async with world.opened(**options) as store:
        return store.origin


async def test_a_clean_restart_keeps_the_origin_even_on_a_new_kernel(world):
    async with world.opened() as store:
        await store.write(note)
        origin = store.origin
    world.disk.boot_id = "kernel-2"

    assert await origin_after(world) == origin


async def test_a_killed_process_keeps_its_origin_and_its_numbers(world):
    async with world.opened(crash=True) as store:
        await store.write(note)
        origin = store.origin

    async with world.opened() as store:
        assert store.origin == origin
        assert (await store.write(lambda tx: tx.put("notes", "default", "k2", {}))).seq == 2


async def test_a_host_that_went_down_gets_a_new_origin(world):
    async with world.opened(crash=True) as store:
        await store.write(note)
        origin = store.origin
    world.disk.boot_id = "kernel-2"

    async with world.opened() as store:
        assert store.origin != origin
        assert store.origin.node == origin.node
        assert store.vector.head(origin) == 1
        assert (
            await store.read(lambda reader: reader.meta_get("engine.origin-reason"))
            == b"the host went down while the node ran"
        )


async def test_a_restored_backup_gets_a_new_origin(world, tmp_path):
    async with world.opened() as store:
        await store.write(note)
        origin = store.origin
    backup = tmp_path / "backup"
    shutil.copytree(world.root, backup)
    async with world.opened() as store:
        await store.write(note)

    # Only the database is restored; the marker beside it remembers more.
    shutil.copy(backup / "relaymesh.db", world.root / "relaymesh.db")

    assert await origin_after(world) != origin


async def test_a_database_without_its_marker_or_with_a_foreign_one_gets_a_new_origin(make_world):
    a, b = make_world("a"), make_world("b")
    first = await origin_after(a)
    other = await origin_after(b, node_id="node-b")
    assert first.incarnation != other.incarnation or first.node != other.node

    (a.root / "origin").unlink()
    second = await origin_after(a)
    assert second != first

    b.rng.random()
    await origin_after(b, node_id="node-b")
    MarkerFile(a.root / "relaymesh.db", "").write(Marker(second.incarnation + 1, 0))
    third = await origin_after(a)
    assert third not in (first, second)
    assert await origin_after(a) == third


async def test_a_database_under_another_node_id_gets_a_new_origin(world):
    origin = await origin_after(world, node_id="node-a")

    assert (await origin_after(world, node_id="node-x")).node == "node-x" != origin.node


async def test_a_new_origin_can_be_asked_for(world):
    async with world.opened() as store:
        await store.write(note)
        old = store.origin

        new = await store.mint_origin("a peer knows more")

        assert new == store.origin != old
        assert (await store.write(note)).origin == new
        assert store.vector.ranges(new) == [(1, 1)]
    assert await origin_after(world) == new


def test_the_marker_is_read_back_and_every_damage_is_noticed(tmp_path):
    file = MarkerFile(tmp_path / "relaymesh.db", "")
    assert file.read() is None
    for marker in (Marker((1 << 63) - 1, (1 << 63) - 1), Marker(1, 0), Marker(7, 12345)):
        file.write(marker)
        assert file.read() == marker

    good = (tmp_path / "origin").read_bytes()
    for position in range(len(good.rstrip())):  # the padding says nothing
        (tmp_path / "origin").write_bytes(good[:position] + b"#" + good[position + 1 :])
        assert file.read() is None, position
    for data in (b"", good[:-1], b"\xff" * 96):
        (tmp_path / "origin").write_bytes(data)
        assert file.read() is None


def test_origins_keep_their_numbers(tmp_path):
    connection = apsw.Connection(str(tmp_path / "x.db"))
    connection.execute("CREATE TABLE origins (oid INTEGER PRIMARY KEY, node TEXT, incarnation INTEGER)")
    table = OriginTable()
    a, b = Origin("a", 1), Origin("a", 2)
    assert table.number(a) is None
    assert [table.intern(connection, each) for each in (a, b, a)] == [1, 2, 1]
    again = OriginTable()
    again.load(connection)
    assert (again.number(b), again.origin(1)) == (2, a)
    with pytest.raises(KeyError):
        again.origin(3)
    connection.close()
