"""Local writes, merges, hooks and quarantine inside the store's transactions."""

from __future__ import annotations

import msgspec
import pytest
import trio

from mesh.errors import UnavailableError
from mesh.hlc import DRIFT_MAX_MS
from mesh.ids import Origin
from mesh.registers import beats
from mesh.rows import Row
from mesh.tables import Column, Register, Table
from node.storage.transaction import HOOK_DEPTH_MAX

PEER = Origin("node-b", 7)


def peer_row(table="notes", key="k", seq=1, hlc=1 << 40, origin=PEER, **fields):
    values = fields.pop("values", {})
    return Row(
        table=table,
        namespace="default",
        key=key,
        hlc=hlc,
        node=origin.node,
        origin=origin,
        seq=seq,
        values=values,
        **fields,
    )


async def quarantined(store):
    return await store.read(lambda reader: reader.sql("SELECT reason, key FROM quarantine ORDER BY seq"))


async def test_rows_of_one_request_share_a_stamp_and_have_adjoining_numbers(world):
    async with world.opened() as store:

        def two(tx):
            return tx.put("notes", "default", "a", {}), tx.put("jobs", "default", "b", {}), tx.hlc

        first, second, hlc = await store.write(two)
        third = await store.write(lambda tx: tx.put("notes", "default", "c", {}))

        assert first.hlc == second.hlc == hlc < third.hlc
        assert [first.seq, second.seq, third.seq] == [1, 2, 3]


async def test_a_row_written_twice_in_a_request_is_one_version_to_the_outside(world):
    async with world.opened() as store:
        commits = []
        store.on_commit(commits.append)

        def twice(tx):
            tx.put("jobs", "default", "j", {"status": "new"})
            tx.put("notes", "default", "n", {})
            return tx.put("jobs", "default", "j", {"owner": "me"}, rank=2)

        row = await store.write(twice)

        assert row.seq == 1
        assert row.values == {"status": "new", "owner": "me"}
        assert [each.seq for each in commits[0].requests[0]] == [1, 2]
        assert commits[0].requests[0][0] == row
        assert [(change.before, change.after.key) for change in commits[0].changes] == [(None, "j"), (None, "n")]
        assert await store.read(lambda reader: reader.get("jobs", "default", "j")) == row


async def test_a_write_that_would_lose_fails_its_caller_only(world):
    async with world.opened() as store:
        await store.write(lambda tx: tx.put("jobs", "default", "j", {}, rank=3))
        with pytest.raises(AssertionError, match="would lose"):
            await store.write(lambda tx: tx.put("jobs", "default", "j", {}, rank=0))
        await store.write(lambda tx: tx.put("jobs", "default", "j", {"status": "again"}, rank=0, generation=1))


async def test_merging_keeps_the_winner_and_marks_the_dot_either_way(world):
    async with world.opened() as store:
        old, new = peer_row(hlc=1 << 40, seq=1), peer_row(hlc=1 << 41, seq=2, values={"text": "new"})

        assert await store.write(lambda tx: tx.merge(new), remote=True) == "applied"
        assert store.vector.ranges(PEER) == [(2, 2)]
        assert await store.write(lambda tx: tx.merge(new), remote=True) == "same"
        assert await store.write(lambda tx: tx.merge(old), remote=True) == "stale"
        assert store.vector.ranges(PEER) == [(1, 2)]
        assert await store.read(lambda reader: reader.get("notes", "default", "k")) == new


async def test_a_local_write_comes_after_every_merged_stamp(world):
    async with world.opened() as store:
        ahead = ((store.physical_ms() + DRIFT_MAX_MS // 2) << 16) + 5
        await store.write(lambda tx: tx.merge(peer_row(hlc=ahead)), remote=True)

        row = await store.write(lambda tx: tx.put("notes", "default", "k", {"text": "mine"}))

        assert row.hlc == ahead + 1


async def test_merged_rows_are_told_as_changes_and_not_as_requests_to_push(world):
    async with world.opened() as store:
        commits = []
        store.on_commit(commits.append)
        await store.write(lambda tx: tx.merge(peer_row()), remote=True)

        assert commits[0].requests == ()
        assert [(change.after.key, change.local) for change in commits[0].changes] == [("k", False)]
        assert commits[0].vector_changed


async def test_unknown_columns_are_kept_and_passed_on(world):
    async with world.opened() as store:
        row = peer_row(values={"text": "a", "of_tomorrow": b"\x00\xff", "number": 2.5})
        await store.write(lambda tx: tx.merge(row), remote=True)

        assert await store.read(lambda reader: reader.get("notes", "default", "k")) == row
        written = await store.write(lambda tx: tx.put("notes", "default", "k", {"text": "b"}))
        assert written.values == {"text": "b", "of_tomorrow": b"\x00\xff", "number": 2.5}


async def test_unknown_columns_move_into_their_own_after_an_upgrade(world):
    row = peer_row(values={"text": "a", "of_tomorrow": b"x", "later": 3})
    async with world.opened() as store:
        await store.write(lambda tx: tx.merge(row), remote=True)
        sums = await store.read(lambda reader: reader.sums())

    newer = Table("notes", Register.LWW, (*world.store()._tables[0].columns, Column("of_tomorrow", "blob")))
    async with world.opened(tables=(newer, *world.store()._tables[1:])) as store:
        assert await store.read(lambda reader: reader.get("notes", "default", "k")) == row
        assert len(await store.read(lambda reader: reader.select("notes", "of_tomorrow = ?", (b"x",)))) == 1
        assert await store.read(lambda reader: reader.sums()) == sums


async def test_rows_of_unknown_tables_wait_for_the_release_that_knows_them(world):
    row = peer_row(table="of_tomorrow", values={"text": "a"})
    async with world.opened() as store:
        assert await store.write(lambda tx: tx.merge(row), remote=True) == "quarantined"
        assert await quarantined(store) == [("unknown-table", "k")]
        assert store.vector.covers(PEER, 1)

    tables = (*world.store()._tables, Table("of_tomorrow", Register.LWW, (Column("text"),)))
    async with world.opened(tables=tables) as store:
        await trio.testing.wait_all_tasks_blocked()
        assert await store.read(lambda reader: reader.get("of_tomorrow", "default", "k")) == row
        assert await quarantined(store) == []


async def test_a_row_of_the_future_waits_until_its_time_has_come(world, autojump_clock):
    async with world.opened() as store:
        limit_ms = store.physical_ms() + DRIFT_MAX_MS
        at_limit = peer_row(key="at-limit", hlc=limit_ms << 16)
        beyond = peer_row(key="beyond", hlc=(limit_ms + 10_000) << 16, seq=2)

        assert await store.write(lambda tx: tx.merge(at_limit), remote=True) == "applied"
        last = store.hlc.last
        assert await store.write(lambda tx: tx.merge(beyond), remote=True) == "quarantined"
        assert store.hlc.last == last
        assert await quarantined(store) == [("future-stamp", "beyond")]

        await trio.sleep(8)
        assert await store.read(lambda reader: reader.get("notes", "default", "beyond")) is None
        await trio.sleep(4)
        assert await store.read(lambda reader: reader.get("notes", "default", "beyond")) == beyond
        assert await quarantined(store) == []


async def test_a_lifecycle_row_of_the_future_applies_without_dragging_the_clock(world):
    async with world.opened() as store:
        far = (store.physical_ms() + 100 * DRIFT_MAX_MS) << 16
        assert await store.write(lambda tx: tx.merge(peer_row("jobs", hlc=far, rank=3)), remote=True) == "applied"
        assert store.hlc.last < far

        row = await store.write(lambda tx: tx.put("jobs", "default", "k", {}, rank=3))
        assert row.hlc == far + 1


@pytest.mark.parametrize(
    "values", [{"size": "text"}, {"size": 1 << 63}, {"weight": float("nan")}, {"text": b"x"}, {"Bad Name": 1}]
)
async def test_a_poison_row_is_put_aside_and_hurts_nobody(world, values):
    async with world.opened() as store:

        def merge(tx):
            return tx.merge(peer_row(key="bad", values=values)), tx.merge(peer_row(key="good", seq=2))

        assert await store.write(merge, remote=True) == ("quarantined", "applied")
        assert await quarantined(store) == [("poison", "bad")]
        assert store.vector.ranges(PEER) == [(1, 2)]


async def test_an_immutable_conflict_keeps_the_loser_where_people_see_it(world):
    async with world.opened() as store:
        ours = await store.write(lambda tx: tx.put("facts", "default", "k", {"text": "ours"}))
        theirs = peer_row("facts", values={"text": "theirs"})
        await store.write(lambda tx: tx.merge(theirs), remote=True)

        current = await store.read(lambda reader: reader.get("facts", "default", "k"))
        assert current == (ours if beats(Register.IMMUTABLE, ours, theirs) else theirs)
        assert await quarantined(store) == [("immutable-conflict", "k")]


async def test_quarantine_is_bounded(world, monkeypatch):
    monkeypatch.setattr("node.storage.transaction.QUARANTINE_ROWS_MAX", 3)
    async with world.opened() as store:
        for seq in range(1, 5):
            row = peer_row(table="nowhere", key=f"k{seq}", seq=seq)
            await store.write(lambda tx, row=row: tx.merge(row), remote=True)
            assert len(await quarantined(store)) == min(seq, 3)

        assert [key for _, key in await quarantined(store)] == ["k2", "k3", "k4"]
        assert store.counters()["quarantine_dropped"] == 1


async def test_hooks_see_local_and_merged_versions_and_may_write(world):
    store_rows = []

    def hook(tx, before, after):
        store_rows.append((before, after))
        tx.put("notes", after.namespace, f"about-{after.key}", {"text": after.text("status")})
        tx.execute("INSERT OR REPLACE INTO meta VALUES ('local', ?)", (after.key.encode(),))

    store = world.store()
    store.watch("jobs", hook)
    await store.open()
    commits = []
    store.on_commit(commits.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        mine = await store.write(lambda tx: tx.put("jobs", "default", "mine", {"status": "new"}))
        theirs = peer_row("jobs", key="theirs", values={"status": "old"})
        await store.write(lambda tx: tx.merge(theirs), remote=True)

        assert store_rows == [(None, mine), (None, theirs)]
        about = await store.read(lambda reader: reader.get("notes", "default", "about-theirs"))
        assert about.text("text") == "old"
        # What a hook writes while merging is ours, and is pushed.
        assert commits[1].requests == ((about,),)
        assert await store.read(lambda reader: reader.meta_get("local")) == b"theirs"
        nursery.cancel_scope.cancel()
    await store.close()


async def test_a_hook_that_fails_undoes_a_local_request_but_only_sets_a_merged_row_aside(world):
    def hook(tx, before, after):
        tx.put("notes", "default", f"about-{after.key}", {})
        if after.key == "bad":
            raise ValueError("cannot digest this")

    store = world.store()
    store.watch("jobs", hook)
    commits = []
    store.on_commit(commits.append)
    await store.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        with pytest.raises(ValueError, match="digest"):
            await store.write(lambda tx: tx.put("jobs", "default", "bad", {}))

        def merge(tx):
            rows = [peer_row("jobs", key=key, seq=seq) for seq, key in enumerate(("one", "bad", "two"), 1)]
            return [tx.merge(row) for row in rows]

        assert await store.write(merge, remote=True) == ["applied", "quarantined", "applied"]
        assert await quarantined(store) == [("rejected", "bad")]
        assert await store.read(lambda reader: reader.get("jobs", "default", "bad")) is None
        (commit,) = commits
        assert [(row.key, row.seq) for row in commit.requests[0]] == [("about-one", 1), ("about-two", 2)]
        assert [change.after.key for change in commit.changes] == ["one", "about-one", "two", "about-two"]
        notes = await store.read(lambda reader: reader.select("notes"))
        assert [row.key for row in notes] == ["about-one", "about-two"]
        assert store.vector.ranges(store.origin) == [(1, 2)]
        nursery.cancel_scope.cancel()
    await store.close()


async def test_hooks_that_chase_each_other_are_stopped(world):
    depths = []

    def hook(tx, before, after):
        depths.append(after.key)
        tx.put("jobs", "default", after.key + "x", {})

    store = world.store()
    store.watch("jobs", hook)
    await store.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        with pytest.raises(AssertionError, match="deep"):
            await store.write(lambda tx: tx.put("jobs", "default", "j", {}))
        nursery.cancel_scope.cancel()
    await store.close()

    assert len(depths) == HOOK_DEPTH_MAX


async def test_a_peer_that_knows_more_of_us_than_we_do_makes_a_new_origin(world):
    async with world.opened() as store:
        await store.write(lambda tx: tx.put("notes", "default", "k", {}))
        old = store.origin
        lost = peer_row(key="lost", seq=2, origin=old)

        with pytest.raises(UnavailableError, match="repeat"):
            await store.write(lambda tx: tx.merge(lost), remote=True)
        assert await store.write(lambda tx: tx.merge(lost), remote=True) == "applied"

        assert store.origin != old
        assert store.origin.node == old.node
        row = await store.write(lambda tx: tx.put("notes", "default", "k2", {}))
        assert (row.origin, row.seq) == (store.origin, 1)
        assert store.vector.ranges(old) == [(1, 2)]
        assert store.counters()["origins_minted"] == 2


async def test_sums_equal_the_digests_of_the_rows_and_see_a_difference(make_world):
    async with make_world("a").opened() as a, make_world("b").opened("node-b") as b:
        rows = [await a.write(lambda tx, n=n: tx.put("notes", "default", f"k{n}", {"size": n})) for n in range(10)]
        await b.write(lambda tx: [tx.merge(row) for row in reversed(rows)], remote=True)

        sums = await a.read(lambda reader: reader.sums())
        assert await b.read(lambda reader: reader.sums()) == sums
        assert await b.read(lambda reader: reader.range_sum(a.origin, 1, 10)) == sums[a.origin]
        assert await b.read(lambda reader: reader.range_sum(Origin("nobody", 1), 1, 10)) == (0, 0, 0)

        tampered = msgspec.structs.replace(rows[3], values={"size": 99}, hlc=rows[3].hlc + 1)
        await b.write(lambda tx: tx.merge(tampered), remote=True)
        at_b = await b.read(lambda reader: reader.sums())
        assert at_b[a.origin][0] == 10
        assert at_b != sums
        assert await b.read(lambda reader: reader.range_sum(a.origin, 4, 4)) != await a.read(
            lambda reader: reader.range_sum(a.origin, 4, 4)
        )
        assert await b.read(lambda reader: reader.rows_in_range(a.origin, 4, 4)) == [tampered]
