"""Retention of the history: it goes before its task, on all nodes alike, and nothing depends on it."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from mesh.stability import Stable
from node.work import retention
from node.work.retention import Purged, drop_history, old_history_page
from node.work.tables import Status
from tests.node.simulated_env import simulated_world
from tests.node.work_desk import DONE, FAILED, SPACE, desks

FAR_MS = 1 << 45
ATTEMPTS_ONLY = {"doneRetentionMs": 10**9, "deadRetentionMs": 10**9, "attemptRetentionMs": 0}


async def failed_once(desk, key: str = "k") -> str:
    """A task that failed once and then succeeded."""
    task_id = await desk.one(key)
    await desk.run(await desk.step(task_id), FAILED)
    await desk.run(await desk.step(task_id), DONE)
    return task_id


async def old(desk, until_ms: int = FAR_MS) -> list[retention.Name]:
    look = partial(old_history_page, until_ms=until_ms, namespace=SPACE, after=(-1, ""), is_mine=lambda _: True)
    return (await desk.store.read(look))[0]


async def drop(desk) -> Purged:
    purged, names = Purged(), await old(desk)
    await desk.write(lambda tx: drop_history(tx, names, purged))
    return purged


async def forget(*all_desks) -> None:
    for desk in all_desks:
        seen = desk.store.vector.copy()
        await desk.store.adopt(Stable(seen, seen))
        while await desk.write(lambda tx: tx.collect_garbage()):
            pass


async def test_the_history_goes_and_its_task_stays_as_it_was(tmp_path, autojump_clock):
    async with desks(tmp_path, "a") as (a,):
        task_id = await failed_once(a)
        before = await a.step(task_id)
        assert await a.actions(task_id) == ["failed"]
        assert await old(a, until_ms=0) == []

        assert (await drop(a)).attempts == 1
        assert await old(a) == []
        await forget(a)
        assert await a.store.read(lambda reader: reader.select("history")) == []
        assert await a.step(task_id) == before
        assert await a.status(task_id) is Status.SUCCESS


async def test_two_nodes_that_delete_it_on_two_sides_of_a_cut_agree(tmp_path, autojump_clock):
    async with desks(tmp_path, "a", "b") as (a, b):
        task_id = await failed_once(a)
        await b.pull(a)
        await trio.sleep(1.0)
        await drop(b)
        await trio.sleep(1.0)
        await drop(a)
        await a.pull(b)
        await b.pull(a)
        assert await a.sums() == await b.sums()
        assert await a.store.read(lambda reader: reader.sql("SELECT count(*) FROM quarantine")) == [(0,)]
        await forget(a, b)
        assert await a.sums() == await b.sums()
        assert await b.status(task_id) is Status.SUCCESS


async def test_what_belongs_to_a_deleted_task_goes_with_it_without_a_further_row(tmp_path, autojump_clock):
    async with desks(tmp_path, "a", "b") as (a, b):
        task_id = await failed_once(a)
        await b.pull(a)
        await a.write(
            lambda tx: retention.purge(
                tx, [(SPACE, task_id)], Purged(), retention=retention.Retention(done_ms=0, dead_ms=0)
            )
        )
        assert (await drop(a)).attempts == 0
        assert (await drop(b)).attempts == 1  # it has not heard yet
        await a.pull(b)
        await b.pull(a)
        await forget(a, b)
        for desk in (a, b):
            for table in ("tasks", "steps", "history"):
                assert await desk.store.read(lambda reader, name=table: reader.select(name)) == []
        assert await a.sums() == await b.sums()


async def test_an_open_step_keeps_failing_and_the_history_stays_short(tmp_path, autojump_clock):
    async with desks(tmp_path, "a") as (a,):
        task_id = await a.one()
        for _ in range(2):
            await a.run(await a.step(task_id), FAILED)
            await drop(a)
            await forget(a)
            assert await a.actions(task_id) == []
        assert (await a.step(task_id)).integer("attempt") == 2
        await a.run(await a.step(task_id), FAILED)
        assert await a.status(task_id) is Status.DEAD_LETTER  # the third attempt was the last one all the same
        assert await a.replay(task_id)


@pytest.fixture
async def world(tmp_path):
    async with simulated_world(tmp_path) as world:
        yield world


async def test_by_hand_or_by_setting_a_mesh_forgets_attempts_and_keeps_tasks(world, autojump_clock):
    a, b = (world.host(name, attempt_retention_ms=40_000, retention_interval_ms=5_000) for name in "ab")
    await world.up()
    first = await a.submit("fail")
    await world.until(lambda: _ended(a, first), 120.0)
    await world.until(world.agree)
    answer = await b.admin("purge", **ATTEMPTS_ONLY)
    assert (answer["doneTasksPurged"], answer["deadTasksPurged"]) == (0, 0)
    assert answer["attemptsPurged"] > 0
    await world.until(lambda: _has_no_history(a, b), 200.0)
    told = await a.admin("explain", taskId=first)
    assert "It is a dead letter: told to fail" in str(told)
    assert await a.admin("logs", taskId=first) == []

    second = await b.submit("fail")
    await world.until(lambda: _ended(b, second), 120.0)
    assert await b.rows("history")
    assert (await b.admin("purge"))["attemptsPurged"] == 0  # not asked for
    await world.until(lambda: _has_no_history(a, b), 200.0)
    assert len(await b.rows("tasks")) == 2


async def _ended(host, task_id: str) -> bool:
    return bool((await host.admin("task", taskId=task_id))["status"] == "DEAD_LETTER")


async def _has_no_history(*hosts) -> bool:
    return not any([await host.rows("history") for host in hosts])
