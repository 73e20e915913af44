"""Exchanging a node's database on a simulated drive: whatever step a power cut comes in, one of the two is there."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import apsw
import pytest
import trio

from chaos.simulation.disk import DiskImage, SimulatedDisk
from chaos.simulation.host import SimulatedHostDisk
from chaos.simulation.vfs import VFS_NAME, SimulatedVfs, installed_vfs
from mesh.errors import RelayMeshError, StoreError
from mesh.tables import Column, Register, Table
from node.env import Env
from node.storage.migrate import load_migrations
from node.storage.store import Store

NOW_S = 1_700_000_000.5
IMAGES = ("drop", "subset", "torn")
NOTES = (Table("notes", Register.LWW, (Column("text"),)),)
COPY = Path("/host/relaymesh.db.part")


@pytest.fixture
def vfs() -> Iterator[SimulatedVfs]:
    with installed_vfs(7, lambda: NOW_S) as installed:
        yield installed


class InlineThread:
    async def run(self, fn: Callable[[], Any]) -> Any:
        await trio.lowlevel.cancel_shielded_checkpoint()
        return fn()

    def close(self) -> None:
        pass


class StillClock:
    def monotonic(self) -> float:
        return trio.current_time()

    def wall(self) -> float:
        return NOW_S

    async def sleep(self, seconds: float) -> None:
        await trio.sleep_forever()


@dataclass
class Machine:
    name: str
    disk: SimulatedDisk
    boots: int = 1


def store_on(machine: Machine) -> Store:
    rng = random.Random(f"{machine.name} {machine.boots}")
    env = Env(
        clock=StillClock(),
        rng=rng,
        entropy=rng.randbytes,
        net=cast(Any, None),
        disk=SimulatedHostDisk(cast(Any, machine), VFS_NAME),
        writer_thread=InlineThread(),
        reader_thread=InlineThread(),
        executor=cast(Any, None),
    )
    path = Path("/", machine.name, "relaymesh.db")
    return Store(env, NOTES, node_id=machine.name, path=path, migrations=load_migrations()[:1])


@asynccontextmanager
async def life(machine: Machine):
    """One life of a store, ended from one line to the next."""
    store = store_on(machine)
    try:
        await store.open()
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            yield store
            machine.disk.dead = True
            nursery.cancel_scope.cancel()
    finally:
        machine.disk.dead = True
        store.abandon()
        machine.disk.dead = False


def put_note(key: str, text: str = "hello") -> Callable[[Any], Any]:
    return lambda tx: tx.put("notes", "default", key, {"text": text * 50})


async def notes_of(store: Store) -> list[str]:
    return await store.read(lambda reader: [row.key for row in reader.select("notes", order="key")])


def whole(_ours: Any, theirs: Any) -> list[str]:
    return [row.key for row in theirs.select("notes", order="key")]


async def copy_of_a_donor(vfs: SimulatedVfs) -> bytes:
    donor = Machine("donor", SimulatedDisk(random.Random(1)))
    vfs.attach("donor", donor.disk)
    async with life(donor) as store:
        for key in ("x", "y"):
            await store.write(put_note(key))
        await store.copy_to(Path("/donor/copy"))
    return donor.disk.files()["copy"]


async def image_before(vfs: SimulatedVfs, copy: bytes) -> DiskImage:
    """A host with two notes of its own, and a copy that has arrived."""
    host = Machine("host", SimulatedDisk(random.Random(2)))
    vfs.attach("host", host.disk)
    async with life(host) as store:
        await store.write(put_note("a"))
        await store.write(lambda tx: tx.meta_set("boot", b"12345678"))
    vfs.detach("host")
    return DiskImage({**host.disk.snapshot().files, COPY.name: copy})


async def exchange(store: Store) -> None:
    await store.prepare_copy(COPY, whole)
    await store.replace_database(COPY)


async def test_an_exchange_keeps_what_only_the_old_database_had_and_writes_under_a_new_origin(vfs):
    base = await image_before(vfs, await copy_of_a_donor(vfs))
    host = Machine("host", SimulatedDisk(random.Random(3)), boots=2)
    host.disk.restore(base)
    vfs.attach("host", host.disk)
    async with life(host) as store:
        before, vector = store.origin, store.vector.copy()
        await exchange(store)
        assert store.origin.node == "host"
        assert store.origin != before
        assert await notes_of(store) == ["a", "x", "y"]
        assert not store.vector.missing_from(vector)
        assert await store.read(lambda reader: reader.meta_get("boot")) == b"12345678"
        row = await store.write(put_note("b"))
        assert (row.origin, row.seq) == (store.origin, 1)
        assert store.vector == await store.read(lambda reader: reader.vector())
    assert sorted(host.disk.files()) == ["origin", "relaymesh.db", "relaymesh.db-wal"]


async def test_a_power_cut_at_every_operation_of_an_exchange_leaves_one_whole_database(vfs):
    base = await image_before(vfs, await copy_of_a_donor(vfs))
    kept, exchanged, nth, was_cut = 0, 0, 0, True
    while was_cut:
        nth += 1
        for image in IMAGES:
            host = Machine("host", SimulatedDisk(random.Random(nth)), boots=2)
            host.disk.restore(base)
            vfs.attach("host", host.disk)
            async with life(host) as store:
                await store.write(put_note("b"))
                first = store.origin
                host.disk.cut_at_write(nth, None)
                try:
                    await exchange(store)
                except RelayMeshError:
                    pass
                was_cut = host.disk.dead
            host.disk.mend()
            host.disk.power_cut(image, random.Random(nth))
            host.boots = 3
            async with life(host) as store:
                found = await notes_of(store)
                assert found in (["a", "b"], ["a", "b", "x", "y"]), nth
                kept, exchanged = kept + (len(found) == 2), exchanged + (len(found) == 4)
                assert store.origin != first
                assert await store.read(lambda reader: reader.sql("PRAGMA integrity_check")) == [("ok",)]
                await store.write(put_note("z"))
            vfs.detach("host")
    assert kept > 60
    assert exchanged > 3


async def test_an_exchange_that_fails_on_a_full_disk_leaves_the_old_database_in_use(vfs):
    base = await image_before(vfs, await copy_of_a_donor(vfs))
    host = Machine("host", SimulatedDisk(random.Random(3)), boots=2)
    host.disk.restore(base)
    vfs.attach("host", host.disk)
    async with life(host) as store:
        await store.prepare_copy(COPY, whole)
        origin = store.origin
        host.disk.quota_bytes = host.disk.used_bytes()
        with pytest.raises(StoreError, match="tried again"):
            await store.replace_database(COPY)
        host.disk.quota_bytes = None
        assert (store.is_open, store.origin) == (True, origin)
        await store.write(put_note("b"))
        assert await notes_of(store) == ["a", "b"]


async def test_a_copy_that_does_not_fit_holds_nothing_up_and_can_be_made_again(vfs):
    host = Machine("host", SimulatedDisk(random.Random(3)))
    vfs.attach("host", host.disk)
    async with life(host) as store:
        for number in range(100):
            await store.write(put_note(f"{number:03}", "x" * 100))
        host.disk.quota_bytes = host.disk.used_bytes() + 8_192
        with pytest.raises(StoreError, match="cannot be copied"):
            await store.copy_to(COPY)
        host.disk.quota_bytes = None
        await store.write(put_note("later"))
        host.disk.unlink(COPY.name)
        await store.copy_to(COPY)
        assert len(await store.prepare_copy(COPY, whole)) == 101


async def test_a_copy_carries_no_word_of_its_maker(vfs):
    copy = await copy_of_a_donor(vfs)
    connection = apsw.Connection(":memory:")
    connection.deserialize("main", copy)
    assert [name for (name,) in connection.execute("SELECT name FROM meta")] == ["engine.hlc"]
    assert connection.execute("SELECT count(*) FROM members").get == 0
