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
    (lag,) = peer["originsBehindThere"]
    now_ms = a.node.store.physical_ms()
    assert lag == {"nodeId": "node-z", "incarnation": f"{7:016x}", "rows": 1, "oldestAgeMs": now_ms - (1 << 24)}
    _, seen_from_b = await report(b)
    assert (seen_from_b["missingHere"], seen_from_b["missingThere"]) == (1, 0)
    (lag,) = seen_from_b["originsBehindHere"]
    assert (lag["rows"], lag["oldestAgeMs"]) == (1, None)  # only who holds a version knows its age


async def test_the_origins_with_most_missing_are_listed_and_their_oldest_row_told(pair, monkeypatch, autojump_clock):
    a, b = pair

    async def no_call(*args, **how):
        raise UnavailableError("cut")

    monkeypatch.setattr(b.node.puller, "pull", no_call)
    monkeypatch.setattr(a.node.puller, "pull", no_call)
    now_ms = a.node.store.physical_ms()
    for number in range(12):
        origin = Origin(f"node-{number:02d}", 7)
        for seq in range(1, number + 2):
            row = Row(
                table="payloads",
                namespace="default",
                key=f"k{number}-{seq}",
                hlc=(now_ms - 1_000 * (20 - seq)) << 16,
                node=origin.node,
                origin=origin,
                seq=seq,
                values={},
            )
            await a.node.store.write(lambda tx, row=row: tx.merge(row), remote=True)
    overwritten = Origin("node-0v", 7)
    await a.node.store.write(lambda tx: tx.mark(overwritten, 1, 50), remote=True)

    _, peer = await report(a)
    listed = [(each["nodeId"], each["rows"]) for each in peer["originsBehindThere"]]
    assert listed == [("node-0v", 50), *((f"node-{number:02d}", number + 1) for number in range(11, 2, -1))]
    assert peer["missingThere"] == 50 + sum(range(1, 13))
    first, second, *_ = peer["originsBehindThere"]
    assert first["oldestAgeMs"] is None  # nothing of it is stored any more
    assert 19_000 <= second["oldestAgeMs"] < 25_000


async def test_a_peer_that_does_not_answer_is_named_and_no_agreement(pair, monkeypatch, autojump_clock):
    a, _ = pair

    async def no_call(*args, **how):
        raise UnavailableError("nobody answers there")

    monkeypatch.setattr(a.node.data_calls, "call", no_call)
    answer, peer = await report(a)
    assert not answer["converged"]
    assert "nobody answers" in peer["error"]
