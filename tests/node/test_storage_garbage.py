"""Forgetting inside one database: what goes with a tombstone, and what a late copy meets."""

from __future__ import annotations

import msgspec
import pytest

from mesh.ids import Origin
from mesh.rows import Row
from mesh.stability import Stable
from mesh.tables import Column, Parent, Register, Table
from mesh.version_vector import VersionVector
from node.replication.whole_copy import Copy
from node.storage import quarantine
from node.storage.garbage import row_name
from node.storage.transaction import Arrival
from tests.node.conftest import STORE_TABLES

BOXES = Table("boxes", Register.LIFECYCLE, (Column("label"),))
THINGS = Table("things", Register.LIFECYCLE, (Column("box"),), Parent("boxes", "box"))
PEER = Origin("node-b", 7)


@pytest.fixture
async def store(world):
    async with world.opened(tables=(*STORE_TABLES, BOXES, THINGS)) as store:
        yield store


def foreign(seq: int, table: str = "things", key: str = "t", **fields) -> Row:
    values = fields.pop("values", {"box": "b"} if table == "things" else {})
    row = Row(
        table=table, namespace="default", key=key, hlc=1000 + seq, node="node-b", origin=PEER, seq=seq, values=values
    )
    return msgspec.structs.replace(row, **fields)


async def boxed(store) -> None:
    """A box with a thing, then the box deleted."""
    await store.write(
        lambda tx: (tx.put("boxes", "default", "b", {"label": "x"}), tx.put("things", "default", "t", {"box": "b"}))
    )
    await store.write(lambda tx: tx.put("boxes", "default", "b", {}, deleted=True))


async def adopt_all(store) -> None:
    """Everybody has seen everything."""
    seen = store.vector.copy()
    await store.write(lambda tx: tx.adopt(Stable(seen, seen)))


async def collect(store) -> int:
    return await store.write(lambda tx: tx.collect_garbage())


async def get(store, table: str, key: str) -> Row | None:
    return await store.read(lambda reader: reader.get(table, "default", key))


async def test_a_tombstone_stays_until_all_have_seen_it(store):
    await boxed(store)
    assert await collect(store) == 0
    assert (await get(store, "boxes", "b")).deleted
    assert store.has_tombstones

    await adopt_all(store)
    assert store.has_garbage
    assert await collect(store) == 1
    assert await get(store, "boxes", "b") is None
    assert await get(store, "things", "t") is None
    assert not store.has_tombstones


async def test_a_child_that_not_all_have_seen_outlives_its_parent(store):
    await boxed(store)
    seen = store.vector.copy()
    await store.write(lambda tx: tx.merge(foreign(1, key="late")))
    await store.write(lambda tx: tx.adopt(Stable(seen, seen)))
    await collect(store)
    assert await get(store, "things", "t") is None
    assert (await get(store, "things", "late")).text("box") == "b"


async def test_what_is_known_to_be_stable_survives_a_restart(world):
    tables = (*STORE_TABLES, BOXES, THINGS)
    async with world.opened(tables=tables) as store:
        await boxed(store)
        await adopt_all(store)
        stable = store.stable
    async with world.opened(tables=tables) as store:
        assert store.stable == stable
        assert store.has_tombstones


async def test_a_late_copy_of_what_was_forgotten_is_dropped_unless_it_mends_a_gap(store):
    old = foreign(1, key="x")
    await store.write(lambda tx: tx.merge(old))
    await store.write(lambda tx: tx.put("things", "default", "x", {}, deleted=True))
    await adopt_all(store)
    await collect(store)

    assert await store.write(lambda tx: tx.merge(old)) == "stale"
    assert await store.write(lambda tx: tx.merge(old, Arrival.PUSHED)) == "stale"
    assert await get(store, "things", "x") is None
    assert await store.write(lambda tx: tx.merge(old, Arrival.REPAIRED)) == "applied"


async def test_a_row_in_quarantine_is_not_taken_for_one_that_was_forgotten(store):
    await boxed(store)
    await adopt_all(store)
    await collect(store)
    parked = foreign(1, "unknown", "u", values={})
    assert await store.write(lambda tx: tx.merge(parked)) == "quarantined"
    (entry,) = await store.read(lambda reader: quarantine.entries(reader, reason=None, limit=9))
    outcome, stays = await store.write(lambda tx: quarantine.retry(tx, entry.name))
    assert outcome == "quarantined"
    assert stays is not None
    assert len(await store.read(lambda reader: quarantine.entries(reader, reason=None, limit=9))) == 1


async def test_a_whole_copy_brings_back_nothing_that_was_forgotten_and_drops_what_the_peer_forgot(store):
    here, there = foreign(1, key="forgotten-here"), foreign(2, key="forgotten-there")
    await store.write(lambda tx: [tx.merge(row) for row in (here, there)])
    await store.write(lambda tx: tx.put("things", "default", here.key, {}, deleted=True))
    await adopt_all(store)
    await collect(store)

    theirs = VersionVector()
    theirs.add(PEER, 1, 3)
    copy = Copy(store)
    await copy.add([here], None, None)
    assert await get(store, "things", here.key) is None
    assert await get(store, "things", there.key) is not None  # a copy that breaks off here has changed nothing
    await copy.add([foreign(3, key="new")], Stable(), theirs)

    assert await get(store, "things", here.key) is None
    assert await get(store, "things", there.key) is None
    assert await get(store, "things", "new") is not None


async def test_a_row_made_anew_elsewhere_waits_for_the_pull_that_tells_why_it_may_win(store):
    await boxed(store)
    anew = foreign(2, "boxes", "b", values={"label": "new"})  # generation 0: its writer had forgotten ours
    inside = foreign(3, key="t")
    assert await store.write(lambda tx: [tx.merge(row, Arrival.PUSHED) for row in (anew, inside)]) == ["deferred"] * 2
    assert not store.vector.covers(PEER, 2)

    await adopt_all(store)
    assert await store.write(lambda tx: [tx.merge(row) for row in (anew, inside)]) == ["applied"] * 2
    assert (await get(store, "boxes", "b")).text("label") == "new"
    assert (await get(store, "things", "t")).origin == PEER


async def test_written_anew_here_a_forgettable_row_begins_at_generation_zero_as_on_every_other_node(store):
    await boxed(store)
    anew = await store.write(lambda tx: tx.put("boxes", "default", "b", {"label": "new"}))
    assert anew.generation == 1  # not all have seen the deletion: only a new generation outranks it
    await store.write(lambda tx: tx.put("boxes", "default", "b", {}, deleted=True))
    await adopt_all(store)
    anew = await store.write(lambda tx: tx.put("boxes", "default", "b", {"label": "newer"}))
    assert anew.generation == 0
    assert await get(store, "things", "t") is None  # it belonged to the box of that time


async def test_a_replica_that_lacks_what_all_others_have_forgets_nothing_yet(store):
    await boxed(store)
    await store.write(lambda tx: tx.merge(foreign(20, key="other")))
    more = store.vector.copy()
    more.add(PEER, 1, 9)
    await store.adopt(Stable(store.vector.copy(), more))
    assert store.stable == Stable()  # it may not even adopt
    await store.write(lambda tx: tx.adopt(Stable(store.vector.copy(), more)))
    assert not store.has_garbage


async def test_after_a_whole_copy_only_what_nobody_else_has_seen_is_left(store):
    await store.write(lambda tx: [tx.merge(foreign(1, "boxes", "gone")), tx.merge(foreign(2, "boxes", "kept"))])
    await store.write(lambda tx: tx.put("things", "default", "orphan", {"box": "gone"}))
    await store.write(lambda tx: tx.put("things", "default", "mine", {"box": "kept"}))
    sent = {row_name("boxes", "default", "kept")}
    dropped = await store.write(lambda tx: tx.drop_unsent(sent, VersionVector({PEER: [(1, 2)]})))
    assert dropped == 2
    assert await get(store, "boxes", "gone") is None
    assert await get(store, "things", "orphan") is None
    assert await get(store, "things", "mine") is not None
