"""The store as its users see it. Each test runs a real SQLite file in a temporary folder."""

from __future__ import annotations

import apsw
import pytest
import trio
import trio.testing

from mesh.errors import ConflictError, LimitError, StoreError, UnavailableError
from mesh.ids import Origin
from node.storage.database import DamagedError
from node.storage.store import (
    BATCH_REMOTE_ROWS_MAX,
    BATCH_REQUESTS_MAX,
    LOCAL_WAITING_MAX,
    REMOTE_ROWS_WAITING_MAX,
)


def put_note(key, **values):
    return lambda tx: tx.put("notes", "default", key, values)


async def test_written_rows_are_read_back_and_told_to_callbacks(world):
    async with world.opened() as store:
        commits = []
        store.on_commit(commits.append)

        row = await store.write(put_note("k", text="hello", size=3, body=b"\0", weight=0.5))
        read = await store.read(lambda reader: reader.get("notes", "default", "k"))

        assert read == row
        assert (row.node, row.origin, row.seq) == ("node-a", store.origin, 1)
        assert commits[0].requests == ((row,),)
        assert [(change.before, change.after, change.local) for change in commits[0].changes] == [(None, row, True)]
        assert store.vector.ranges(store.origin) == [(1, 1)]


async def test_everything_is_there_again_after_a_restart(world):
    async with world.opened() as store:
        row = await store.write(put_note("k", text="hello"))
        await store.write(lambda tx: tx.meta_set("boot", b"7"))
        vector, last = store.vector.copy(), store.hlc.last

    async with world.opened() as store:
        assert await store.read(lambda reader: reader.get("notes", "default", "k")) == row
        assert await store.read(lambda reader: reader.meta_get("boot")) == b"7"
        assert await store.read(lambda reader: reader.meta_get("other")) is None
        assert store.vector == vector
        assert store.hlc.last == last


async def test_stamps_rise_over_a_restart_of_a_host_whose_clock_begins_in_1970(world, monkeypatch):
    async with world.opened() as store:
        before = await store.write(put_note("k", text="a"))

    store = world.store()
    store._env.clock.wall_offset_s = -trio.current_time()
    await store.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        after = await store.write(put_note("k", text="b"))
        nursery.cancel_scope.cancel()
    await store.close()

    assert after.hlc > before.hlc


async def test_requests_that_wait_together_share_one_commit(world):
    async with world.opened() as store:
        await store.write(put_note("first"))
        commits = store.counters()["commits"]
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(store.write, put_note(f"k{number}"))

        assert store.counters()["commits"] - commits <= 2
        assert len(await store.read(lambda reader: reader.select("notes"))) == 51


async def test_a_request_that_raises_is_undone_alone(world):
    store = world.store()
    await store.open()
    outcomes = {}

    def broken(tx):
        tx.put("notes", "default", "lost", {"text": "x"})
        tx.meta_set("lost", b"x")
        raise ConflictError("no")

    async def attempt(name, fn):
        try:
            outcomes[name] = await store.write(fn)
        except ConflictError as error:
            outcomes[name] = error

    async with trio.open_nursery() as nursery:
        for name, fn in (("a", put_note("a")), ("broken", broken), ("b", put_note("b"))):
            nursery.start_soon(attempt, name, fn)
            await trio.testing.wait_all_tasks_blocked()
        await nursery.start(store.run)
        await trio.testing.wait_all_tasks_blocked()

        keys = await store.read(lambda reader: [row.key for row in reader.select("notes", order="key")])
        assert keys == ["a", "b"]
        assert str(outcomes["broken"]) == "no"
        assert await store.read(lambda reader: reader.meta_get("lost")) is None
        # Its sequence number was given to the next one: no gap, no reuse.
        assert [outcomes[name].seq for name in "ab"] == [1, 2]
        assert store.vector.ranges(store.origin) == [(1, 2)]
        assert store.counters()["commits"] == 1
        nursery.cancel_scope.cancel()
    await store.close()


async def test_callbacks_see_a_commit_before_its_callers_wake(world):
    async with world.opened() as store:
        order = []
        store.on_commit(lambda commit: order.append("callback"))

        await store.write(put_note("k"))
        order.append("caller")

        assert order == ["callback", "caller"]


async def test_a_closed_store_says_that_the_node_has_stopped(world):
    async with world.opened() as store:
        await store.write(put_note("k"))
    with pytest.raises(UnavailableError, match="has stopped"):
        await store.read(lambda reader: reader.get("notes", "default", "k"))


async def test_a_commit_without_a_change_calls_nobody_and_writes_nothing(world):
    async with world.opened() as store:
        await store.write(put_note("k"))
        commits = []
        store.on_commit(commits.append)
        log = world.root / "relaymesh.db-wal"
        before = log.stat().st_mtime_ns, log.stat().st_size

        await store.write(lambda tx: tx.get("notes", "default", "k"))

        assert commits == []
        assert (log.stat().st_mtime_ns, log.stat().st_size) == before


async def test_a_caller_that_goes_away_does_not_undo_its_request(world):
    async with world.opened() as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, put_note("k"))
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await store.write(put_note("later"))

        assert await store.read(lambda reader: reader.get("notes", "default", "k")) is not None


async def test_what_was_accepted_is_committed_when_the_store_stops(world):
    async with trio.open_nursery() as callers, world.opened() as store:
        for number in range(20):
            callers.start_soon(store.write, put_note(f"k{number}"))
        await trio.lowlevel.checkpoint()

    with pytest.raises(UnavailableError):
        await store.write(put_note("late"))
    async with world.opened() as store:
        assert len(await store.read(lambda reader: reader.select("notes"))) == 20


async def test_local_requests_are_bounded(world):
    store = world.store()
    await store.open()
    async with trio.open_nursery() as nursery:
        # Nobody commits yet, so all of them wait.
        for number in range(LOCAL_WAITING_MAX):
            nursery.start_soon(store.write, lambda tx, number=number: tx.meta_set(f"n{number % 10}", b"x"))
        await trio.testing.wait_all_tasks_blocked()

        assert store.counters()["local_waiting"] == LOCAL_WAITING_MAX
        with pytest.raises(LimitError, match="try again"):
            await store.write(put_note("one more"))
        assert store.counters()["local_refused"] == 1

        await nursery.start(store.run)
        await trio.testing.wait_all_tasks_blocked()
        assert store.counters()["local_waiting"] == 0
        assert store.counters()["commits"] == LOCAL_WAITING_MAX / BATCH_REQUESTS_MAX
        nursery.cancel_scope.cancel()
    await store.close()


async def test_remote_rows_are_bounded_but_one_request_always_fits(world):
    store = world.store()
    await store.open()

    async def merge_nothing(rows):
        await store.write(lambda tx: None, remote=True, rows=rows)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(merge_nothing, REMOTE_ROWS_WAITING_MAX + 1)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(LimitError):
            await merge_nothing(1)
        await nursery.start(store.run)
        await trio.testing.wait_all_tasks_blocked()
        await merge_nothing(1)
        nursery.cancel_scope.cancel()
    await store.close()


async def test_local_commands_go_before_remote_rows_and_neither_starves(world):
    store = world.store()
    await store.open()
    order = []
    async with trio.open_nursery() as nursery:

        async def remote(name, rows):
            await store.write(lambda tx: order.append(name), remote=True, rows=rows)

        async def local(name):
            await store.write(lambda tx: order.append(name))

        nursery.start_soon(remote, "remote-1", BATCH_REMOTE_ROWS_MAX)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(remote, "remote-2", 1)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(BATCH_REQUESTS_MAX + 1):
            nursery.start_soon(local, "local")
        await trio.testing.wait_all_tasks_blocked()
        await nursery.start(store.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await store.close()

    # A batch takes local requests first, then remote ones up to their own limit.
    assert order == ["local"] * BATCH_REQUESTS_MAX + ["remote-1", "local", "remote-2"]


async def test_reading_goes_on_while_a_batch_is_being_committed(make_world):
    world = make_world(threads=True)
    async with world.opened() as store:
        await store.write(put_note("k", text="old"))
        inside, seen = trio.Event(), []
        token = trio.lowlevel.current_trio_token()

        def slow(tx):
            tx.put("notes", "default", "k", {"text": "new"})
            token.run_sync_soon(inside.set)
            trio.from_thread.run(trio.lowlevel.checkpoint, trio_token=token)
            while not seen:
                trio.from_thread.run(trio.lowlevel.checkpoint, trio_token=token)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, slow)
            await inside.wait()
            seen.append(await store.read(lambda reader: reader.get("notes", "default", "k").text("text")))

        assert seen == ["old"]
        assert (await store.read(lambda reader: reader.get("notes", "default", "k"))).text("text") == "new"


async def test_readers_cannot_write(world):
    async with world.opened() as store:
        with pytest.raises(Exception, match=r"readonly|read-only"):
            await store.read(lambda reader: reader.sql("DELETE FROM meta"))


async def test_select_takes_conditions_order_and_limit(world):
    async with world.opened() as store:
        for number in range(5):
            await store.write(put_note(f"k{number}", size=number))
        await store.write(lambda tx: tx.put("notes", "default", "k4", {}, deleted=True))

        found = await store.read(
            lambda reader: reader.select("notes", "size >= ? AND deleted = 0", (1,), order="size DESC", limit=2)
        )
        assert [row.key for row in found] == ["k3", "k2"]
        tombstone = await store.read(lambda reader: reader.get("notes", "default", "k4"))
        assert tombstone.deleted
        assert tombstone.values == {}


async def test_one_connection_serves_reads_and_writes_when_the_disk_has_no_shared_memory(world):
    world.disk.shared_memory = False
    async with world.opened() as store:
        row = await store.write(put_note("k", text="a"))
        assert await store.read(lambda reader: reader.get("notes", "default", "k")) == row
        assert not (world.root / "relaymesh.db-shm").exists()


async def test_an_idle_store_checkpoints_once_and_then_writes_nothing(world, autojump_clock):
    async with world.opened() as store:
        await store.write(put_note("k"))
        await trio.sleep(30)
        assert store.counters()["checkpoints"] == 1
        files = {path.name: path.stat().st_mtime_ns for path in world.root.iterdir()}

        await trio.sleep(300)

        assert {path.name: path.stat().st_mtime_ns for path in world.root.iterdir()} == files
        assert store.counters()["checkpoints"] == 1


async def test_a_long_log_is_checkpointed_under_load(world, monkeypatch):
    monkeypatch.setattr("node.storage.store.WAL_PAGES_MAX", 20)
    async with world.opened() as store:
        for number in range(60):
            await store.write(put_note(f"k{number}", body=bytes(4_000)))

        assert store.counters()["checkpoints"] >= 2
        assert store._writer.wal_pages < 60, "the log begins again after a checkpoint"


async def test_the_vector_in_memory_is_the_stored_one(world):
    async with world.opened() as store:
        other = Origin("node-b", 9)
        for lo, hi in ((5, 7), (1, 2), (9, 9), (3, 3), (8, 8)):
            await store.write(lambda tx, lo=lo, hi=hi: tx.mark(other, lo, hi), remote=True)
            await store.write(put_note(f"k{lo}"))
            assert await store.read(lambda reader: reader.vector()) == store.vector
        assert store.vector.ranges(other) == [(1, 3), (5, 9)]


async def test_a_store_whose_file_is_broken_ends_and_says_what_to_do(world, autojump_clock):
    def break_down(_reader):
        raise apsw.CorruptError("database disk image is malformed")

    async def read_and_go_on() -> None:
        async with world.opened() as store:
            with pytest.raises(StoreError, match="malformed"):
                await store.read(break_down)
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as ended:
        await read_and_go_on()
    damages, rest = ended.value.split(DamagedError)
    assert rest is None
    while isinstance(damages, BaseExceptionGroup):
        damages = damages.exceptions[0]
    assert "start it again" in str(damages)
