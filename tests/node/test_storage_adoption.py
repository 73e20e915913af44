"""Going on with another node's database: which versions are there, whatever was deleted, forgotten or put aside.

The measure is always the same: what a node with the donor's rows would have after a pull from the old database.
"""

from __future__ import annotations

import msgspec
import pytest

from mesh.errors import ConfigError
from mesh.ids import Origin
from mesh.rows import Row
from mesh.stability import Stable
from mesh.tables import Column, Parent, Register, Table
from node.storage.store import Store
from tests.node.conftest import STORE_TABLES

TABLES = (
    *STORE_TABLES,
    Table("boxes", Register.LIFECYCLE, (Column("label"),)),
    Table("things", Register.LIFECYCLE, (Column("box"),), Parent("boxes", "box")),
)
ELSEWHERE = Origin("node-c", 7)


@pytest.fixture
async def pair(make_world):
    """A donor, and the node that goes on with its database."""
    async with (
        make_world("a").opened(tables=TABLES) as donor,
        make_world("b").opened("node-b", tables=TABLES) as ours,
    ):
        yield donor, ours


async def exchange(donor: Store, ours: Store) -> None:
    made, arrived = donor.path.with_name("copy"), ours.path.with_name("copy")
    await donor.copy_to(made)
    made.rename(arrived)
    await ours.prepare_copy(arrived, lambda _ours, _theirs: None)
    await ours.replace_database(arrived)


async def put(store: Store, table: str, key: str, **values: str) -> Row:
    return await store.write(lambda tx: tx.put(table, "default", key, values))


async def delete(store: Store, table: str, key: str) -> Row:
    return await store.write(lambda tx: tx.put(table, "default", key, {}, deleted=True))


async def get(store: Store, table: str, key: str) -> Row | None:
    return await store.read(lambda reader: reader.get(table, "default", key))


async def hear(store: Store, other: Store) -> None:
    """Merge all that the other one has."""
    rows = await other.read(lambda reader: [row for table in TABLES for row in reader.select(table.name)])

    def merge(tx):
        for row in rows:
            tx.merge(row)
        tx.join(other.vector)

    await store.write(merge)


async def all_have_seen_all(store: Store) -> None:
    """Nobody needs to remember what is deleted here."""
    seen = store.vector.copy()
    await store.write(lambda tx: tx.adopt(Stable(seen, seen)))
    await store.write(lambda tx: tx.collect_garbage())


async def test_a_row_made_anew_over_a_tombstone_that_only_the_donor_remembers_stays(pair):
    donor, ours = pair
    await put(donor, "boxes", "b", label="old")
    await delete(donor, "boxes", "b")
    await hear(ours, donor)
    await all_have_seen_all(ours)
    anew = await put(ours, "boxes", "b", label="new")
    assert anew.generation == 0  # by itself it would lose to the tombstone
    await exchange(donor, ours)
    assert (await get(ours, "boxes", "b")).text("label") == "new"


async def test_a_copy_that_is_older_than_what_this_node_has_forgotten_is_refused_and_changes_nothing(pair):
    donor, ours = pair
    await put(donor, "boxes", "b", label="alive at the donor")
    await hear(ours, donor)
    await delete(ours, "boxes", "b")
    await all_have_seen_all(ours)
    origin = ours.origin
    with pytest.raises(ConfigError, match="older than deletions"):
        await exchange(donor, ours)
    assert await get(ours, "boxes", "b") is None
    assert ours.origin == origin
    await put(ours, "notes", "n", text="the old database is in use")


async def test_what_we_wrote_to_a_row_that_the_donor_has_seen_and_forgotten_stays_behind(pair):
    donor, ours = pair
    await put(donor, "boxes", "b", label="x")
    await hear(ours, donor)
    await put(ours, "things", "t", box="b")
    await delete(donor, "boxes", "b")
    await all_have_seen_all(donor)
    await exchange(donor, ours)
    assert await get(ours, "boxes", "b") is None
    assert await get(ours, "things", "t") is None


async def test_what_we_wrote_to_a_row_that_neither_has_yet_is_taken_along(pair):
    donor, ours = pair
    await put(ours, "things", "t", box="to come")
    await exchange(donor, ours)
    assert (await get(ours, "things", "t")).text("box") == "to come"


async def test_what_the_donor_has_put_aside_and_we_have_not_stays_current(pair):
    donor, ours = pair
    await put(donor, "notes", "n", text="old")
    await hear(ours, donor)
    current = await get(donor, "notes", "n")
    # The donor's clock is behind, ours is not.
    an_hour_on = current.hlc + (3_600_000 << 16)
    ahead = msgspec.structs.replace(current, hlc=an_hour_on, origin=ELSEWHERE, node="node-c", seq=1)
    assert await donor.write(lambda tx: tx.merge(ahead)) == "quarantined"
    ours.physical_clock.reanchor(ahead.hlc >> 16, ours._env.clock.monotonic(), None)
    assert await ours.write(lambda tx: tx.merge(ahead)) == "applied"
    await exchange(donor, ours)
    assert (await get(ours, "notes", "n")).origin == ELSEWHERE
    assert await ours.read(lambda reader: reader.sql("SELECT key FROM quarantine")) == []
