"""Deletion in a whole mesh: it is forgotten everywhere, waits for whoever is away, and comes back through nobody."""

from __future__ import annotations

import pytest
import trio

from mesh.errors import NotFoundError
from node.work import retention
from tests.node.simulated_env import simulated_world

ALL = {"doneRetentionMs": 0, "deadRetentionMs": 0}


@pytest.fixture
async def world(tmp_path):
    async with simulated_world(tmp_path) as world:
        yield world


async def finished(host, count: int = 3) -> list[str]:
    tasks = [await host.submit(input="x" * 2_000) for _ in range(count)]
    for task_id in tasks:
        await host.wait(task_id)
    return tasks


async def is_forgotten(*hosts) -> bool:
    for host in hosts:
        for table in ("tasks", "steps", "history", "payloads"):
            if await host.rows(table):
                return False
    return True


async def test_what_was_purged_is_forgotten_on_every_node_with_all_that_belonged_to_it(world, autojump_clock):
    hosts = [world.host(name) for name in "abc"]
    await world.up()
    await finished(hosts[0])
    await world.until(world.agree)
    assert await hosts[1].admin("purge", **ALL) == {
        "doneTasksPurged": 3,
        "deadTasksPurged": 0,
        "attemptsPurged": 0,
        "more": False,
    }
    await world.until(lambda: is_forgotten(*hosts), 300.0)
    assert (await hosts[2].wait(await hosts[2].submit(input="after")))["status"] == "SUCCESS"


async def test_more_than_goes_at_once_goes_soon_after_and_not_an_interval_later(world, autojump_clock, monkeypatch):
    monkeypatch.setattr(retention, "PURGE_TASKS_MAX", 2)
    a = world.host("a", done_retention_ms=1_000, retention_interval_ms=3_600_000)
    await world.up()
    await finished(a, 12)
    await trio.sleep(1.5 * 3_600.0 + 10.0)
    assert [row for row in await a.rows("tasks") if not row.deleted] == []


async def test_a_member_that_is_away_is_waited_for_and_hears_of_the_deletion(world, autojump_clock):
    a, _, c = hosts = [world.host(name) for name in "abc"]
    await world.up()
    await finished(a)
    await world.until(world.agree)
    await c.crash()
    await a.admin("purge", **ALL)
    await world.until(lambda: a.sees("c") == "DEAD")
    await trio.sleep(900.0)
    assert a.node.store.has_tombstones
    assert a.node.stability.rounds_total < 20  # less and less often
    await c.start()
    await world.until(lambda: is_forgotten(*hosts), 1_500.0)


async def test_a_member_that_was_pruned_copies_everything_anew_and_brings_nothing_back(world, autojump_clock):
    a, b, c = hosts = [world.host(name) for name in "abc"]
    await world.up()
    await finished(a)
    await world.until(world.agree)
    world.network.cut("ab", "c")
    alone = await c.submit(input="written alone")
    await c.wait(alone)
    await c.crash()
    await a.admin("purge", **ALL)
    await world.until(lambda: a.sees("c") == "DEAD" and b.sees("c") == "DEAD")
    for host in (a, b):
        answer = await host.admin("mesh-prune", nodeId="c")
        assert answer["pruned"] == ["c"]
    await world.until(lambda: is_forgotten(a, b), 1_500.0)

    world.network.heal()
    await c.start()
    await world.until(world.agree)
    for host in hosts:
        assert [row.key for row in await host.rows("tasks")] == [alone]
        assert (await host.step(alone)).text("status") == "SUCCESS"
    await world.until(lambda: list(a.node.roster.members()) == ["b", "c"])


async def test_two_sides_that_gave_each_other_up_bring_nothing_back_to_each_other(world, autojump_clock):
    a, b, c = hosts = [world.host(name) for name in "abc"]
    await world.up()
    await finished(a)
    await world.until(world.agree)
    world.network.cut("ab", "c")
    await finished(a, 2)
    await finished(c, 2)
    await world.until(lambda: a.sees("c") == b.sees("c") == c.sees("a") == c.sees("b") == "DEAD")
    await a.admin("purge", **ALL)
    for host, gone in ((a, "c"), (b, "c"), (c, "a"), (c, "b")):
        await host.admin("mesh-prune", nodeId=gone)
    await world.until(lambda: is_forgotten(a, b), 1_500.0)
    await c.admin("purge", **ALL)
    await world.until(lambda: is_forgotten(c), 1_500.0)
    kept = await a.submit(input="kept")

    world.network.heal()
    await world.until(world.agree, 300.0)
    for host in hosts:
        assert [row.key for row in await host.rows("tasks")] == [kept]


async def test_what_is_alive_or_unknown_is_not_pruned(world, autojump_clock):
    a = world.host("a")
    world.host("b")
    await world.up()
    for name in ("b", "z", "a"):
        with pytest.raises(NotFoundError, match="DEAD or LEFT"):
            await a.admin("mesh-prune", nodeId=name)
    assert (await a.admin("mesh-prune", olderThanMs=0))["pruned"] == []
