"""Whole nodes of releases that speak different protocols: they use what they share, and say so when it is nothing."""

from __future__ import annotations

import logging

import pytest

from mesh import protocol
from mesh.errors import UnavailableError
from node import metrics
from tests.node.simulated_env import simulated_world


@pytest.fixture
async def world(tmp_path):
    async with simulated_world(tmp_path) as world:
        yield world


def speak(monkeypatch, oldest: int, newest: int) -> None:
    """Let nodes that start from now on be of a release with this range."""
    monkeypatch.setattr(protocol, "OLDEST", oldest)
    monkeypatch.setattr(protocol, "NEWEST", newest)


async def members_of(host):
    return {member["nodeId"]: member for member in await host.admin("members")}


async def test_a_member_without_a_common_protocol_is_shown_counted_and_given_nothing(
    world, autojump_clock, monkeypatch, caplog
):
    caplog.set_level(logging.ERROR)
    a, b, c = world.host("a"), world.host("b"), world.host("c")
    await a.start()
    await b.start()
    speak(monkeypatch, 3, 4)
    await c.start()
    await world.until(lambda: all(x.sees(y) == "ALIVE" for x in (a, b, c) for y in "abc" if x.name != y))

    seen = (await members_of(a))["c"]
    assert (seen["status"], seen["protocol"]) == ("ALIVE", "3 to 4")
    problem = seen["protocolProblem"]
    assert problem.startswith("c (release 1.0-test) speaks protocol 3 to 4, and this node (release 1.0-test) 1 to 2: ")
    assert "upgrade this node" in problem
    assert "upgrade a to" in (await members_of(c))["a"]["protocolProblem"]
    told = [record for record in caplog.records if record.message == f"cannot talk to a member: {problem}"]
    assert len(told) == 2  # once by a and once by b
    assert "relaymesh_members_without_protocol 1.0" in await metrics.render(a.node)
    assert a.node.loop.placeable() == ["a", "b"]
    assert a.node.loop.rpc_address("c") is None

    with pytest.raises(UnavailableError, match=r"speaks protocol 1 to 2, and this node .* 3 to 4: upgrade a to"):
        await c.node.calls.call(a.node.spec.rpc_address, "pull", b"")
    assert a.node.server.errors["protocol"] == 1
    assert 'relaymesh_stream_errors_total{code="protocol"} 1.0' in await metrics.render(a.node)

    task_id = await a.submit("echo", input="x")
    assert (await a.wait(task_id))["status"] == "SUCCESS"


async def test_a_member_of_the_next_release_uses_the_protocol_that_both_speak(world, autojump_clock, monkeypatch):
    a, b = world.host("a"), world.host("b")
    await a.start()
    speak(monkeypatch, 2, 3)
    await b.start()
    await world.until(lambda: a.sees("b") == b.sees("a") == "ALIVE")
    task_id = await a.submit("echo", input="x")
    assert (await b.wait(task_id))["status"] == "SUCCESS"

    assert (await members_of(a))["b"]["protocolProblem"] is None
    assert set(b.node.server.protocols) == {2}
    for host, spoken in ((a, "1 to 2"), (b, "2 to 3")):
        version = await host.admin("version")
        assert (version["protocol"], version["protocolOfAll"]) == (spoken, 2)
        assert (await host.admin("mesh-summary"))["protocolOfAll"] == 2
