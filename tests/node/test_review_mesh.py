"""Whole nodes against a failing disk, senseless peers and clients that stop waiting."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio

from mesh.errors import FrameError, NotFoundError
from mesh.row_codec import CHUNK_LIMITS, INT_MAX, decode_rows
from node.replication import verify
from node.storage.store import Store
from tests.node.simulated_env import BreakableVfs, simulated_world


@pytest.fixture
async def world(tmp_path, autojump_clock):
    async with simulated_world(tmp_path) as world:
        yield world


@pytest.fixture
def vfs(request):
    vfs = BreakableVfs(f"breakable-{request.node.name}")
    yield vfs
    vfs.unregister()


async def test_a_store_that_recovers_runs_nothing_again_that_others_finished_meanwhile(world, vfs, autojump_clock):
    a, b = world.host("a", vfs=vfs.name), world.host("b", slots=1)
    await world.up()
    await b.submit("sleep", input="12", node="b")
    await world.until(lambda: b.jobs)  # without an idle slot it asks for nothing
    a.node.runtime.paused = "the test holds its slots"
    task_id = await a.submit("sleep", input="1")
    await world.until(world.agree)
    vfs.broken = True
    assert (await b.wait(task_id))["status"] == "SUCCESS"
    # For a moment after the repair, no news of what happened meanwhile gets through.
    world.network.cut("a", "b")
    vfs.broken = False
    await world.until(lambda: not a.node.store.failed)
    await trio.sleep(0.5)
    world.network.heal()
    await world.until(world.agree)
    assert a.node.runtime.paused is None

    assert [host.name for host in (a, b) for job in host.jobs if job.task_id == task_id] == ["b"]
    await a.wait(await a.submit(input="works again"))


async def test_waiting_for_tasks_leaves_nothing_behind(world, autojump_clock):
    a = world.host("a")
    await world.up()
    ended, never = await a.submit(input="x"), await a.submit("sleep", input="100000")
    await a.wait(ended)
    await a.wait(ended)
    assert (await a.admin("wait", taskId=never, timeoutMs=50))["timedOut"]
    with pytest.raises(NotFoundError):
        await a.admin("wait", taskId="tsk_nothing")
    with trio.move_on_after(0.5):
        await a.admin("wait", taskId=never)

    commands: Any = a.service._commands["wait"]
    assert commands.__self__._watched == {}


async def rows_of(store: Store, origin: tuple[str, int], lo: int, hi: int) -> list[int]:
    body = msgspec.msgpack.encode(verify.RowsRequest(origin, lo, hi))
    return [row.seq for row in decode_rows(await verify.serve_rows(store, body), limits=CHUNK_LIMITS)]


async def test_nobody_gets_more_than_a_leaf_of_rows_by_one_request(world, autojump_clock):
    a = world.host("a")
    await world.up()
    for _ in range(50):
        await a.submit(input="x")
    store = a.node.store
    origin = (store.origin.node, store.origin.incarnation)

    seqs = await rows_of(store, origin, 1, INT_MAX)

    assert seqs
    assert max(seqs) <= verify.LEAF_ROWS_MAX
    with pytest.raises(FrameError):
        await verify.serve_rows(store, msgspec.msgpack.encode((origin, 1, INT_MAX + 1)))
    with pytest.raises(FrameError):
        await verify.serve_ranges(store, msgspec.msgpack.encode((origin, [(-1, 5)])))


async def test_an_answer_of_large_rows_ends_at_its_limit_and_is_asked_on(world, autojump_clock, monkeypatch):
    monkeypatch.setattr(verify, "ANSWER_BYTES_MAX", 10_000)
    a, b = world.host("a"), world.host("b")
    await world.up()
    ids = [await a.submit(input="x" * 4000 + str(number)) for number in range(10)]
    for task_id in ids:
        await a.wait(task_id)
    await world.until(world.agree)
    # A damaged disk: the payloads are gone at b, and its vector says that they are there.
    await b.node.store.write(lambda tx: tx.execute("DELETE FROM payloads"))

    result = await b.node.verify_with("a")

    assert result is not None
    assert result.repaired_rows >= 10
    await world.until(world.agree)


async def test_a_dead_peer_is_not_pulled_from_for_ever_and_is_at_once_when_it_returns(world, autojump_clock):
    a, b = world.host("a"), world.host("b")
    await world.up()
    await b.crash()
    await world.until(lambda: a.sees("b") == "DEAD")
    await trio.sleep(60)
    failures = a.node.puller.failures_total
    await trio.sleep(600)
    assert a.node.puller.failures_total == failures

    task_id = await a.submit(input="x")
    await b.start()
    await world.until(world.agree)
    assert (await b.wait(task_id))["status"] == "SUCCESS"
