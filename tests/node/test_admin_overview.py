"""What `top` and `doctor` ask a node for: its answers hold what happened. Method: simulated nodes and their clock."""

from __future__ import annotations

import pytest
import trio

from node.env import Outcome
from tests.node.simulated_env import simulated_world


@pytest.fixture
async def world(tmp_path):
    async with simulated_world(tmp_path) as world:
        yield world


async def forever(job):
    await trio.sleep_forever()
    return Outcome(kind="success")


async def test_the_overview_counts_what_happens_while_it_is_asked_for(world, autojump_clock):
    a, b = world.host("a", agents={"long": forever}), world.host("b")
    await world.up()
    first = await a.admin("overview")
    done, long = await b.submit(input="x"), await a.submit("long", input="x")
    await a.submit("long", input="x", node="nobody")
    await a.wait(done)
    await world.until(lambda: a.jobs)
    await trio.sleep(1)

    seen = await a.admin("overview", limit=5)

    assert first["totals"] == {"submitted": 0, "started": 0, "finished": 0, "failed": 0}
    assert seen["totals"]["submitted"] == 3
    assert (seen["totals"]["finished"], seen["countedForMs"] > 900) == (1, True)
    (run,) = seen["running"]
    assert (run["taskId"], run["agentId"], run["owner"], run["attempt"], run["ageMs"] > 500) == (
        long,
        "long",
        "a",
        1,
        True,
    )
    members = {member["nodeId"]: member for member in seen["members"]}
    assert (members["a"]["isThisNode"], members["a"]["openSteps"], members["a"]["runningSteps"]) == (True, 2, 1)
    assert members["b"]["status"] == "ALIVE"
    assert seen["runningHere"] == 1
    assert seen["generatedAtMs"] - members["a"]["statusSinceMs"] < 60_000
    assert seen["queue"]["normal"]["depth"] == 1
    assert seen["attention"] == ["1 steps wait at a that cannot run there: `doctor`"]


async def test_the_overview_says_what_needs_attention(world, autojump_clock):
    a, b = world.host("a"), world.host("b")
    await world.up()
    await b.submit("echo", input="x", node="nobody")
    await world.until(world.agree)
    await b.crash()
    await world.until(lambda: a.sees("b") == "DEAD")

    assert any(line.startswith("b is DEAD") for line in (await a.admin("overview"))["attention"])


async def test_the_diagnosis_tells_what_waits_why_and_what_gave_up(world, autojump_clock):
    a = world.host("a")
    b = world.host("b", agents={"rare": forever})
    await world.up()
    dead = await a.submit("fail", input="no luck", maxAttempts=1)
    await b.crash()
    await world.until(lambda: a.sees("b") == "DEAD")
    await a.submit("rare", input="x")
    pinned = await a.submit("echo", input="x", node="nobody")
    await a.wait(dead)

    seen = await a.admin("diagnosis")

    assert seen["agentsMissing"] == {"rare": 1}
    assert {(step["agentId"], step["reason"]) for step in seen["waiting"]} == {
        ("rare", "nobody-able"),
        ("echo", "nobody-able"),
    }
    assert pinned in {step["taskId"] for step in seen["waiting"]}
    assert seen["deadLettersLately"] == [{"agentId": "fail", "error": "told to fail", "count": 1}]
    assert seen["settings"]["diskBudgetBytes"] == 0
    assert (seen["rootIsOnNetwork"], seen["openFiles"] > 0, seen["openFilesMax"] > 0) == (False, True, True)
