"""What a batch remembers of rows is what its transaction sees; updates name what changed, and rows stay byte-true."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from mesh.ids import Origin
from mesh.rows import Row
from node.storage import transaction
from node.storage.schema import UPDATES_MAX, table_sql
from tests.node.conftest import STORE_TABLES, StoreWorld, TestDisk

NOTES = STORE_TABLES[0]


async def in_one_batch(store, *requests):
    """Run requests in one commit; the exceptions or results in order."""
    outcomes = [None] * len(requests)

    async def write(index, fn):
        try:
            outcomes[index] = await store.write(fn)
        except RuntimeError as error:
            outcomes[index] = error

    await trio.testing.wait_all_tasks_blocked()  # until the store has nothing else to commit
    commits = store.counters().get("commits", 0)
    async with trio.open_nursery() as nursery:
        for index, fn in enumerate(requests):
            nursery.start_soon(write, index, fn)
    assert store.counters().get("commits", 0) - commits <= 1
    return outcomes


async def test_a_request_sees_nothing_of_a_failed_one_in_its_batch(world):
    async with world.opened() as store:
        before = await store.write(lambda tx: tx.put("notes", "default", "k", {"text": "old"}))

        def fails(tx):
            tx.put("notes", "default", "k", {"text": "never"})
            tx.put("notes", "default", "new", {"text": "never"})
            raise RuntimeError("undone")

        def sees(tx):
            return tx.get("notes", "default", "k"), tx.get("notes", "default", "new")

        outcomes = await in_one_batch(store, fails, sees, sees)

        assert sorted(map(str, outcomes)) == sorted(map(str, [RuntimeError("undone"), (before, None), (before, None)]))


async def test_a_request_sees_the_rows_of_earlier_ones_in_its_batch(world):
    async with world.opened() as store:

        def append(tx):
            row = tx.get("notes", "default", "k")
            return tx.put("notes", "default", "k", {"text": (row.text("text") if row else "") + "x"}).text("text")

        assert sorted(await in_one_batch(store, append, append, append)) == ["x", "xx", "xxx"]
        assert (await store.read(lambda reader: reader.get("notes", "default", "k"))).text("text") == "xxx"


async def test_a_merge_that_a_hook_refused_is_not_remembered(world):
    peer = Origin("node-b", 7)
    row = Row(
        table="notes",
        namespace="default",
        key="k",
        hlc=1 << 40,
        node="node-b",
        origin=peer,
        seq=1,
        values={"text": "x"},
    )

    def refuse(_tx, _before, _after):
        raise ValueError("no")

    store = world.store()
    store.watch("notes", refuse)
    await store.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)

        def merge_and_look(tx):
            return tx.merge(row), tx.get("notes", "default", "k")

        assert await store.write(merge_and_look, remote=True) == ("quarantined", None)
        nursery.cancel_scope.cancel()
    await store.close()


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_a_batch_of_more_rows_than_are_remembered_is_still_right(world, monkeypatch, limit):
    monkeypatch.setattr(transaction, "ROWS_REMEMBERED_MAX", limit)
    async with world.opened() as store:

        def write(tx):
            for round_number in range(2):
                for key in "abc":
                    tx.put("notes", "default", key, {"size": round_number})
            return [tx.get("notes", "default", key).integer("size") for key in "abc"]

        assert await store.write(write) == [1, 1, 1]


_VALUES = st.fixed_dictionaries(
    {},
    optional={
        "text": st.one_of(st.none(), st.text(alphabet="aü", max_size=2)),
        "size": st.one_of(st.none(), st.integers(0, 1)),
        "weight": st.one_of(st.none(), st.sampled_from([0.0, 1.0, 0.5])),
        "body": st.one_of(st.none(), st.sampled_from([b"", b"0"])),
    },
)


@given(writes=st.lists(_VALUES, min_size=2, max_size=5))
def test_what_updates_left_in_the_database_is_the_row_that_was_written(tmp_path_factory, writes):
    root = tmp_path_factory.mktemp("updates")

    async def main():
        async with StoreWorld(root, TestDisk(root)).opened() as store:
            for values in writes:
                written = await store.write(lambda tx, values=values: tx.put("notes", "default", "k", values))
                assert await store.read(lambda reader: reader.get("notes", "default", "k")) == written
            sums = await store.read(lambda reader: reader.sums())
            assert sums[store.origin][1:] == transaction.row_digest(written)

    trio.run(main)


def test_an_update_names_only_what_changed():
    statement = table_sql(NOTES).update(("text",))
    assert '"text" = ?' in statement
    assert '"size"' not in statement


def test_update_statements_are_remembered_up_to_a_limit():
    sql = table_sql(NOTES)
    for index in range(UPDATES_MAX + 1):
        sql.update((f"column_{index}",))
    assert len(sql._updates) == 1
