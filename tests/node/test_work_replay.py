"""Which steps a replay begins anew and which not: of one task, from one store."""

from __future__ import annotations

import pytest

from mesh.errors import ConflictError, NotFoundError
from node.env import Outcome
from node.work import transitions
from node.work.replay_choice import choose_failed, choose_from, choose_one
from tests.node.work_desk import SPACE, desks, workflow

REJECTED = Outcome(kind="rejected", error="no")
CHAIN = {"last": ["middle"], "middle": ["first"], "first": [], "aside": []}
"""Children before their parents, as a file may list them."""


@pytest.fixture
async def a(tmp_path):
    async with desks(tmp_path, "a") as (a,):
        yield a


async def chain(a, *, fails: str = "") -> str:
    task_id = (await a.submit(workflow(**CHAIN))).task_id
    for name in ("first", "aside", "middle", "last"):
        await a.run(await a.step(task_id, name), *([REJECTED] if name == fails else []))
        if name == fails:
            break
    return task_id


async def test_from_a_step_runs_it_and_all_below_it_again_and_nothing_else(a):
    task_id = await chain(a)
    rows = await a.replay_from(task_id, "middle")

    assert [(row.text("name"), row.text("status"), row.generation) for row in rows] == [
        ("middle", "PENDING", 1),
        ("last", "PENDING", 1),
    ]
    assert list(await a.queued()) == [rows[0].key]  # its child waits for the new output
    assert {name: row.generation for name, row in (await a.steps(task_id)).items()} == {
        "last": 1,
        "middle": 1,
        "first": 0,
        "aside": 0,
    }
    await a.run(await a.step(task_id, "middle"), Outcome(kind="success", result=b"new"))
    claimed = await a.claim(await a.step(task_id, "last"))
    assert claimed.job.parents == {"middle": b"new"}


async def test_below_a_replayed_step_those_that_never_began_stay_as_they_are(a):
    task_id = await chain(a, fails="middle")
    rows = await a.replay_from(task_id, "first")

    assert [row.text("name") for row in rows] == ["first", "middle"]
    assert (await a.step(task_id, "last")).generation == 0
    for name in ("first", "middle", "last"):
        await a.run(await a.step(task_id, name))
    assert await a.status(task_id) == "SUCCESS"


async def test_a_step_below_that_could_begin_on_the_old_output_refuses_the_whole_replay(a):
    task_id = (await a.submit(workflow(**CHAIN))).task_id
    await a.run(await a.step(task_id, "first"))
    before = await a.steps(task_id)

    with pytest.raises(ConflictError, match=r"step 'middle' depends on 'first' and has not ended yet \(PENDING\)"):
        await a.replay_from(task_id, "first")
    await a.claim(before["middle"])
    with pytest.raises(ConflictError, match=r"'middle' depends on 'first' and has not ended yet \(RUNNING"):
        await a.replay_from(task_id, "first")
    with pytest.raises(NotFoundError, match="no step 'x'"):
        await a.replay_from(task_id, "x")
    with pytest.raises(ConflictError, match="step 'last' has not ended yet"):
        await a.replay_from(task_id, "last")
    assert (await a.step(task_id, "first")) == before["first"]
    assert (await a.task(task_id)).generation == 0


async def test_what_is_left_alone_is_told_with_its_reason(a):
    task_id = await chain(a, fails="middle")
    steps = list((await a.steps(task_id)).values())

    assert dict(choose_failed(task_id, steps).left) == {
        "first": "it succeeded: its result is kept",
        "aside": "it succeeded: its result is kept",
        "last": "it has not begun: it runs when what it depends on is done",
    }
    assert dict(choose_one(task_id, steps, "first").left)["middle"] == "it was not asked for, and stays DEAD_LETTER"
    await a.replay(task_id)
    steps = list((await a.steps(task_id)).values())
    assert dict(choose_from(task_id, steps, "aside").left)["middle"] == "it has not ended (PENDING)"
    with pytest.raises(ConflictError, match="no dead-letter or cancelled step"):
        choose_failed(task_id, steps)


async def test_only_the_named_ones_of_those_that_failed_are_replayed(a):
    task_id = (await a.submit(workflow(x=[], y=[], z=[]))).task_id
    for name in ("x", "y"):
        await a.run(await a.step(task_id, name), REJECTED)
    await a.run(await a.step(task_id, "z"))

    replayed = await a.write(lambda tx: transitions.replay(tx, SPACE, task_id, me="a", failed=["y", "z"]))
    assert [row.text("name") for row in replayed.steps] == ["y"]
    assert (await a.step(task_id, "x")).text("status") == "DEAD_LETTER"
    assert (await a.step(task_id, "z")).text("status") == "SUCCESS"
