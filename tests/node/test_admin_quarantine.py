"""What a node put aside, as an operator sees it and decides about it."""

from __future__ import annotations

import logging

import pytest

from mesh.errors import ConfigError, NotFoundError
from mesh.hlc import DRIFT_MAX_MS
from mesh.ids import Origin
from mesh.rows import Row
from node import metrics
from tests.node.simulated_env import simulated_world

PEER = Origin("node-b", 7)
POISON = "node-b/0000000000000007/1"


def foreign(table="steps", key="k", seq=1, hlc=1 << 40, namespace="default", **values):
    return Row(table=table, namespace=namespace, key=key, hlc=hlc, node=PEER.node, origin=PEER, seq=seq, values=values)


@pytest.fixture
async def a(tmp_path):
    async with simulated_world(tmp_path) as world:
        host = world.host("a")
        await world.up()
        yield host


async def merge(host, *rows):
    return await host.node.store.write(lambda tx: [tx.merge(row) for row in rows], remote=True)


async def test_a_poisoned_row_is_listed_and_shown_whole(a, autojump_clock):
    assert await merge(a, foreign(status=5, input=b"\xff")) == ["quarantined"]

    answer = await a.admin("quarantine-list")
    (entry,) = answer["rows"]
    assert (
        entry.items()
        >= {
            "id": POISON,
            "reason": "poison",
            "table": "steps",
            "key": "k",
            "origin": "node-b",
            "seq": 1,
        }.items()
    )
    assert entry["ageMs"] >= 0
    assert answer["counts"] == {"poison": 1}
    assert (await a.admin("quarantine-list", reason="future-stamp"))["rows"] == []

    shown = await a.admin("quarantine-show", id=POISON)
    assert shown["row"]["values"] == {"status": 5, "input": {"base64": "/w=="}}


async def test_a_row_that_is_still_poison_stays_with_its_reason_and_age(a, autojump_clock):
    await merge(a, foreign(status=5))
    (before,) = (await a.admin("quarantine-list"))["rows"]
    await a.env.clock.sleep(2)

    answer = await a.admin("quarantine-retry", id=POISON)

    assert (answer["outcome"], answer["stays"], answer["reason"]) == ("quarantined", True, "poison")
    (after,) = (await a.admin("quarantine-list"))["rows"]
    assert after["parkedAtMs"] == before["parkedAtMs"]


async def test_a_row_whose_reason_is_gone_is_applied_by_a_retry(a, autojump_clock):
    future = (a.node.store.physical_ms() + DRIFT_MAX_MS + 600_000) << 16
    row = foreign(table="profiles", namespace="_mesh", key="node-b", hlc=future, slots=1, agents="[]", labels="{}")
    assert await merge(a, row) == ["quarantined"]
    assert (await a.admin("quarantine-retry", id=POISON))["stays"]

    a.node.store.physical_clock.reanchor(a.node.store.physical_ms() + 600_000, a.env.clock.monotonic(), None)
    answer = await a.admin("quarantine-retry", id=POISON)

    assert (answer["outcome"], answer["stays"]) == ("applied", False)
    assert row in await a.rows("profiles")
    assert (await a.admin("quarantine-list"))["rows"] == []


async def test_the_loser_of_an_immutable_conflict_stays_when_judged_again(a, autojump_clock):
    await merge(a, foreign(table="payloads", content=b"x"), foreign(table="payloads", seq=2, content=b"y"))
    (entry,) = (await a.admin("quarantine-list"))["rows"]
    assert entry["reason"] == "immutable-conflict"
    stored = await a.rows("payloads")

    answer = await a.admin("quarantine-retry", id=entry["id"])

    assert (answer["outcome"], answer["stays"]) == ("stale", True)
    assert await a.rows("payloads") == stored


async def test_a_drop_takes_the_exact_id_and_leaves_a_line_in_the_log(a, caplog, autojump_clock):
    await merge(a, foreign(status=5), foreign(status=6, seq=2, key="other"))
    for wrong, error in (("node-b", ConfigError), ("node-b/7/x", ConfigError), ("node-b/7/3", NotFoundError)):
        with pytest.raises(error):
            await a.admin("quarantine-drop", id=wrong)
    assert len((await a.admin("quarantine-list"))["rows"]) == 2

    with caplog.at_level(logging.WARNING):
        await a.admin("quarantine-drop", id=POISON)

    assert f"{POISON} of steps (poison, key k) was dropped" in caplog.text
    assert [entry["key"] for entry in (await a.admin("quarantine-list"))["rows"]] == ["other"]
    assert a.node.store.vector.covers(PEER, 1)


async def test_reasons_are_metrics_and_one_warning_a_minute(a, caplog, autojump_clock):
    with caplog.at_level(logging.WARNING):
        await merge(a, *(foreign(status=5, seq=seq, key=str(seq)) for seq in range(1, 6)))
    assert caplog.text.count("into quarantine") == 1

    text = await metrics.render(a.node)
    assert 'relaymesh_quarantine_rows{reason="poison"} 5.0' in text
    assert 'relaymesh_quarantined_total{reason="poison"} 5.0' in text


async def test_two_tasks_of_one_key_are_listed_as_a_conflict(a, autojump_clock):
    task_id = await a.submit(input="x", idempotencyKey="order-1")
    await merge(a, foreign(table="tasks", key="f" * 64, idempotency_key="order-1"))

    (conflict,) = (await a.admin("quarantine-list"))["keyConflicts"]

    assert (conflict["namespace"], conflict["idempotencyKey"]) == ("default", "order-1")
    assert sorted(conflict["taskIds"]) == sorted([task_id, "f" * 64])
