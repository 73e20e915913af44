"""A node whose disk went back in time, or lost its database."""

from __future__ import annotations

import pytest

from tests.node.simulated_env import simulated_world


@pytest.fixture
async def world(tmp_path):
    async with simulated_world(tmp_path) as world:
        yield world


async def test_a_node_whose_database_was_made_anew_is_one_restart_away_from_working(world, autojump_clock):
    a, b = world.host("a"), world.host("b")
    await world.up()
    for _ in range(3):
        await b.crash()
        await b.start()
    task_id = await b.submit(input="before")
    await a.wait(task_id)
    await b.stop()
    for path in b.root.glob("relaymesh.db*"):
        path.unlink()

    await b.start()
    await world.until(lambda: b.node.identity_conflict)
    assert "restart this node once" in b.node.identity_conflict
    assert b.node.runtime.paused
    await b.stop()
    await b.start()

    assert (await b.wait(task_id))["status"] == "SUCCESS"
    assert (await b.wait(await b.submit(input="after")))["status"] == "SUCCESS"
    assert b.node.identity_conflict is None
    await world.until(world.agree)


async def test_an_earlier_enrolment_is_told_of_the_later_one_and_takes_no_work(world, autojump_clock):
    a, b = world.host("a"), world.host("b")
    await world.up()
    await b.crash()
    b.enrolment = 2
    await b.start()
    await world.until(lambda: a.node.loop.current_life("b") == b.node.life)
    await b.stop()
    b.enrolment = 1
    await b.start()
    await world.until(lambda: b.node.identity_conflict)
    assert "enrolment 2 of b is in use" in b.node.identity_conflict
