"""The class of a dead letter: by the row and the history of real runs, not by what its error text says."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from mesh.ids import make_life
from mesh.takeover import LOST_LEASES_MAX
from node.env import Outcome
from node.work.causes import Cause, cause_of, dead_letter_causes, failures_of, latest_ended
from node.work.tables import Status
from tests.node.work_desk import SPACE, desks


@pytest.fixture
async def a(tmp_path):
    async with desks(tmp_path, "a") as (a,):
        yield a


async def cause(a, task_id) -> Cause:
    step = await a.step(task_id)
    assert step.text("status") == "DEAD_LETTER"
    return cause_of(step, await a.store.read(lambda reader: failures_of(reader, step)))


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["rejected"], Cause.REJECTED),
        (["failed", "failed", "failed"], Cause.ATTEMPTS_EXHAUSTED),
        (["failed", "crashed", "timeout"], Cause.TIMEOUT),
        (["timeout", "failed", "crashed"], Cause.CRASHED),
        (["timeout", "rejected"], Cause.REJECTED),
    ],
)
async def test_the_last_attempt_decides(a, kinds, expected):
    task_id = await a.one()
    for kind in kinds:
        await a.run(await a.step(task_id), Outcome(kind=kind, error="poison: so it says"))
    assert await cause(a, task_id) == expected


async def test_an_earlier_generation_decides_nothing(a):
    task_id = await a.one()
    await a.run(await a.step(task_id), Outcome(kind="rejected", error="no"))
    await a.replay(task_id)
    for _ in range(3):
        await a.run(await a.step(task_id), Outcome(kind="timeout", error="slow"))
    assert await cause(a, task_id) == Cause.TIMEOUT


async def test_poison_is_told_from_its_lost_leases(tmp_path):
    names = [chr(ord("a") + number) for number in range(LOST_LEASES_MAX + 1)]
    async with desks(tmp_path, *names) as nodes:
        task_id = await nodes[0].one()
        for node, taker in itertools.pairwise(nodes):
            await node.claim(await node.step(task_id))
            await taker.pull(node)
            lives = dict.fromkeys(names, make_life(1, 2))
            row = await taker.take_over(await taker.step(task_id), lives)
        assert row.text("status") == "DEAD_LETTER"
        assert await cause(nodes[-1], task_id) == Cause.LOST_LEASES


async def test_a_history_that_is_gone_makes_it_unknown(a):
    task_id = await a.one()
    await a.run(await a.step(task_id), Outcome(kind="rejected", error="no"))
    rows = await a.store.read(lambda reader: reader.select("history"))
    await a.write(lambda tx: [tx.put("history", row.namespace, row.key, {}, deleted=True) for row in rows])
    assert await cause(a, task_id) == Cause.UNKNOWN


async def test_a_peer_s_history_may_hold_any_json(a):
    task_id = await a.one(max_attempts=1)
    await a.run(await a.step(task_id), Outcome(kind="rejected", error="no"))
    step = await a.step(task_id)
    (row,) = await a.store.read(lambda reader: failures_of(reader, step))
    told = msgspec.structs.replace(row, values={**row.values, "detail": '{"kind": []}'})
    assert cause_of(step, [told]) == Cause.UNKNOWN


async def test_counts_are_of_the_latest_and_need_no_look_at_other_steps(a):
    for number, kind in enumerate(["rejected", "crashed", "crashed"]):
        task_id = await a.one(key=f"k{number}", max_attempts=1)
        step = await a.step(task_id)
        for _ in range(1 if kind == "rejected" else 3):
            await a.run(await a.step(task_id), Outcome(kind=kind, error="no"))
    counts = await a.store.read(lambda reader: dead_letter_causes(reader, SPACE, 10))
    assert counts == {"crashed": 2, "rejected": 1}
    assert await a.store.read(lambda reader: dead_letter_causes(reader, SPACE, 2)) == {"crashed": 2}

    latest = await a.store.read(lambda reader: latest_ended(reader, SPACE, Status.DEAD_LETTER, limit=1))
    assert [row.key for row in latest] == [step.key]
    for status, index in ((Status.DEAD_LETTER, "steps_dead"), (Status.CANCELLED, "steps_cancelled")):
        plan = await a.store.read(
            lambda reader, status=status: reader.sql(
                f"EXPLAIN QUERY PLAN SELECT * FROM steps WHERE namespace = ? AND rank = {status.rank} AND deleted = 0 "
                "AND (hlc, key) < (?, ?) ORDER BY hlc DESC, key DESC LIMIT 9",
                (SPACE, 1 << 62, "x"),
            )
        )
        assert index in str(plan)
