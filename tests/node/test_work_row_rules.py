"""Rows that no release of ours writes: put aside wherever they arrive, and nothing that lives here minds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio

from mesh.ids import Origin
from mesh.rows import Row
from node.storage.transaction import Transaction
from node.work import row_rules, transitions
from node.work.tables import CLUSTER_EPOCH_KEY, MESH_NAMESPACE
from tests.node.test_review_work import Desk, desk, foreign, running, step

__all__ = ["desk"]  # the fixture

COUNTER_MAX, STAMP_MAX = row_rules.COUNTER_MAX, row_rules.STAMP_MAX

POISON: dict[str, dict[str, Any]] = {
    "an unknown status": {"values": {"status": "GARBAGE"}},
    "no status": {"values": {"status": None}},
    "a rank that is not its status's": {"rank": 3},
    "a rank of nothing": {"rank": 77},
    "labels that are no JSON": {"values": {"labels": "{"}},
    "labels of lists": {"values": {"labels": '{"a": [1]}'}},
    "dependencies that are no list": {"values": {"depends_on": '"all"'}},
    "lost leases of another form": {"values": {"lost_leases": "[[1]]"}},
    "parents of another form": {"values": {"parents_used": "[]"}},
    "a priority that does not exist": {"values": {"priority": 3}},
    "a negative number of dependents": {"values": {"dependents": -1}},
    "no owner": {"values": {"owner": None}},
    "an owner no fence can hold": {"values": {"owner": "ü" * 40}},
    "an owner one character too long": {"values": {"owner": "n" * 33}},
    "no agent": {"values": {"agent": ""}},
    "a generation past its limit": {"generation": COUNTER_MAX + 1},
    "a lease epoch past its limit": {"lease_epoch": COUNTER_MAX + 1},
    "a cluster epoch past its limit": {"cluster_epoch": COUNTER_MAX + 1},
    "a stamp past its limit": {"hlc": STAMP_MAX + 1},
    "a lease that opens after its row": {"lease_hlc": STAMP_MAX - 1},
}


def crafted(row: Row, changes: dict[str, Any], *, owner: str) -> Row:
    """A new step that a peer claims to have made."""
    values = {"owner": owner, **changes.get("values", {})}
    made = foreign(
        row, values=values, **{name: value for name, value in changes.items() if name not in ("values", "hlc")}
    )
    values = {name: value for name, value in made.values.items() if value is not None}
    return msgspec.structs.replace(made, key="stp_new", hlc=changes.get("hlc", made.hlc), values=values)


async def quarantined(desk: Desk) -> list[tuple[str, str]]:
    return await desk.store.read(lambda reader: reader.sql("SELECT key, reason FROM quarantine"))


@pytest.mark.parametrize("owner", ["node-a", "node-b"])
@pytest.mark.parametrize("name", POISON)
async def test_a_step_is_put_aside_that_has(desk, name, owner):
    original = await desk.one()
    async with running(desk):
        await desk.until(original.key, "SUCCESS")
        bad = crafted(original, POISON[name], owner=owner)

        assert await desk.merge(bad) == "quarantined"
        assert await quarantined(desk) == [("stp_new", "rejected")]
        # Still alive: the next step runs.
        await desk.until((await desk.one()).key, "SUCCESS")


@pytest.mark.parametrize(
    "changes",
    [
        {"generation": COUNTER_MAX},
        {"lease_epoch": COUNTER_MAX},
        {"cluster_epoch": COUNTER_MAX},
        {"hlc": STAMP_MAX},
        {"values": {"owner": "n" * 32}},
    ],
)
async def test_a_step_at_a_limit_is_kept_and_can_still_be_taken_over(desk, changes):
    original = await desk.one()
    row = crafted(original, changes, owner="node-b")
    assert await desk.merge(row) == "applied"

    taken = await desk.store.write(lambda tx: tx.get("steps", "default", row.key))
    assert taken is not None
    row_rules.check_step(taken)


@pytest.mark.parametrize(
    ("table", "changes"),
    [
        ("profiles", {"values": {"agents": "nonsense"}}),
        ("profiles", {"values": {"agents": "[1]"}}),
        ("profiles", {"values": {"labels": "[]"}}),
        ("profiles", {"key": "node-c"}),
        ("profiles", {"namespace": "default"}),
        ("cluster", {"rank": COUNTER_MAX + 1}),
        ("tasks", {"rank": 2}),
        ("tasks", {"generation": COUNTER_MAX + 1}),
        ("history", {"values": {"fence": "nonsense"}}),
        ("history", {"values": {"detail": "[" * 100_000}}),
    ],
)
async def test_other_tables_have_rules_too(desk, table, changes):
    stamp = await desk.store.write(lambda tx: tx.hlc)
    good = {
        "profiles": {"key": "node-b", "values": {"agents": '["echo"]', "labels": "{}"}},
        "cluster": {"key": CLUSTER_EPOCH_KEY, "rank": 2, "values": {}},
        "tasks": {"key": "tsk_x", "namespace": "default", "values": {}},
        "history": {"key": "evt_x", "namespace": "default", "values": {}},
    }[table]
    fields = {"namespace": MESH_NAMESPACE, "hlc": stamp, "node": "node-b", "origin": Origin("node-b", 7), "seq": 1}
    values = {**good["values"], **changes.get("values", {})}
    row = Row(**{"table": table, **fields, **good, **changes, "values": values})

    assert await desk.merge(row) == "quarantined"
    assert [reason for _, reason in await quarantined(desk)] == ["rejected"]


async def test_a_good_profile_and_a_good_epoch_pass(desk):
    stamp = await desk.store.write(lambda tx: tx.hlc)
    profile = Row(
        table="profiles",
        namespace=MESH_NAMESPACE,
        key="node-b",
        hlc=stamp,
        node="node-b",
        origin=Origin("node-b", 7),
        seq=1,
        values={"agents": '["echo"]', "labels": '{"zone": "b"}', "slots": 4, "version": "1"},
    )
    epoch = msgspec.structs.replace(profile, table="cluster", key=CLUSTER_EPOCH_KEY, rank=COUNTER_MAX, seq=2, values={})

    assert await desk.merge(profile) == "applied"
    assert await desk.merge(epoch) == "applied"

    # The highest epoch that a peer may name leaves none to bump to; that is an error, not a crash.
    with pytest.raises(row_rules.RecordError):
        await desk.store.write(lambda tx: transitions.bump_cluster_epoch(tx, reason="", actor="olga"))


async def test_work_goes_on_at_the_highest_cluster_epoch(desk):
    original = await desk.one()
    epoch = Row(
        table="cluster",
        namespace=MESH_NAMESPACE,
        key=CLUSTER_EPOCH_KEY,
        rank=COUNTER_MAX,
        hlc=original.hlc + 1,
        node="node-b",
        origin=Origin("node-b", 7),
        seq=1,
        values={},
    )
    assert await desk.merge(epoch) == "applied"
    async with running(desk):
        await desk.until(original.key, "SUCCESS")


async def test_what_this_node_writes_keeps_every_rule(desk, autojump_clock):
    """Each transition once, over rows that pass the same check; a breach would be raised here."""
    task_id = await desk.submit(step("first", "fail", max_attempts=2), step("second", depends_on=("first",)))

    def cancel(tx: Transaction) -> None:
        transitions.request_cancel(tx, "default", task_id, mode="soft", reason="")

    async with running(desk):
        await desk.until((await desk.steps(task_id))[0].key, "DEAD_LETTER")
        await desk.store.write(cancel)
        await desk.store.write(lambda tx: transitions.replay(tx, "default", task_id, me="node-a", step_name=None))
        await trio.sleep(10)

    for row in await desk.steps(task_id):
        row_rules.check_step(row)
