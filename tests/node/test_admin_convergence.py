"""What `convergence-report` says of replicas that agree, and of ones that a fault keeps apart."""

from __future__ import annotations

import pytest

from mesh.errors import UnavailableError
from mesh.ids import Origin
from mesh.rows import Row
from tests.node.simulated_env import simulated_world


@pytest.fixture
async def pair(tmp_path):
    async with simulated_world(tmp_path) as world:
        a, b = world.host("a"), world.host("b")
        await world.up()
        await world.until(world.agree)
        yield a, b


async def report(host):
    answer = await host.admin("convergence-report")
    (peer,) = answer["peers"]
    return answer, peer


async def test_replicas_that_agree_are_told_with_age_of_pull_and_verify(pair, autojump_clock):
    a, _ = pair
    task_id = await a.submit(input="x")
    await a.wait(task_id)
    await a.world.until(a.world.agree)
    await a.admin("maintenance")
    answer, peer = await report(a)

    assert answer["converged"]
    assert (peer["nodeId"], peer["missingHere"], peer["missingThere"], peer["differingRanges"]) == ("b", 0, 0, 0)
    assert peer["lastVerifyAgeMs"] >= 0
    assert peer["lastPullAgeMs"] >= 0
    assert abs(peer["clockOffsetMs"]) < 1_000


async def test_dots_that_one_side_lacks_are_counted_by_origin(pair, monkeypatch, autojump_clock):
    a, b = pair

    async def no_call(*args, **how):
        raise UnavailableError("cut")

    monkeypatch.setattr(b.node.puller, "pull", no_call)
    monkeypatch.setattr(a.node.puller, "pull", no_call)
    origin = Origin("node-z", 7)
    row = Row(
        table="payloads", namespace="default", key="k", hlc=1 << 40, node="node-z", origin=origin, seq=3, values={}
    )
    await a.node.store.write(lambda tx: tx.merge(row), remote=True)

    answer, peer = await report(a)
    assert not answer["converged"]
    assert (peer["missingHere"], peer["missingThere"]) == (0, 1)
    assert peer["originsBehindThere"] == [{"nodeId": "node-z", "incarnation": "0000000000000007", "rows": 1}]
    _, seen_from_b = await report(b)
    assert (seen_from_b["missingHere"], seen_from_b["missingThere"]) == (1, 0)


async def test_a_peer_that_does_not_answer_is_named_and_no_agreement(pair, monkeypatch, autojump_clock):
    a, _ = pair

    async def no_call(*args, **how):
        raise UnavailableError("nobody answers there")

    monkeypatch.setattr(a.node.data_calls, "call", no_call)
    answer, peer = await report(a)
    assert not answer["converged"]
    assert "nobody answers" in peer["error"]
