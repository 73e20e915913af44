"""The budget of the database: which ended tasks go for it, which never do, and what is said about it."""

from __future__ import annotations

import logging
import random
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import UnavailableError
from mesh.stability import Stable
from node.env import Env, Outcome
from node.work import disk_budget, retention
from node.work.definition import Definition
from node.work.disk_budget import ORDER, DiskBudget, Ended, choose, database_bytes, task_bytes
from node.work.tables import Status
from tests.node.conftest import TrioClock
from tests.node.simulated_env import simulated_world
from tests.node.work_desk import DONE, SPACE, desks, step, workflow

REJECTED = Outcome(kind="rejected", error="no use")
TASKS = st.lists(
    st.builds(
        Ended,
        st.sampled_from(list(Status)),
        st.integers(0, 20),
        st.sampled_from(["default", "other"]),
        st.uuids().map(str),
        st.integers(1, 1_000),
    ),
    max_size=30,
)


@given(TASKS, st.integers(-100, 12_000), st.integers(1, 30))
def test_no_more_goes_than_must_and_nothing_that_has_not_ended(tasks, excess, tasks_max):
    chosen = choose(tasks, excess, tasks_max=tasks_max)

    assert all(task.status.is_terminal for task in chosen)
    assert len(chosen) <= tasks_max
    assert not chosen or sum(task.size for task in chosen[:-1]) < excess
    ended = [task for task in tasks if task.status.is_terminal]
    if len(chosen) < min(tasks_max, len(ended)):
        assert sum(task.size for task in chosen) >= excess


@given(TASKS, st.integers(1, 12_000), st.integers(1, 30))
def test_successes_go_before_cancelled_tasks_and_these_before_dead_letters_the_oldest_first(tasks, excess, tasks_max):
    chosen = choose(tasks, excess, tasks_max=tasks_max)

    def place(task):
        return ORDER.index(task.status), task.created_hlc

    kept = [task for task in tasks if task.status.is_terminal and task not in chosen]
    assert all(place(gone) <= place(task) for gone in chosen for task in kept)
    assert chosen == sorted(chosen, key=place)


@given(TASKS, st.integers(-100, 12_000), st.integers(1, 30), st.randoms(use_true_random=False))
def test_a_choice_made_page_by_page_is_the_choice_from_all(tasks, excess, tasks_max, rng):
    shuffled = rng.sample(tasks, len(tasks))
    chosen: list[Ended] = []
    while shuffled:
        page = [shuffled.pop() for _ in range(min(len(shuffled), rng.randrange(1, 6)))]
        chosen = choose([*chosen, *page], excess, tasks_max=tasks_max)

    assert chosen == choose(tasks, excess, tasks_max=tasks_max)


# --- on a database ---


@asynccontextmanager
async def desk(tmp_path):
    async with desks(tmp_path, "a") as (a,):
        yield a


def keeper(a, bytes_max: int) -> DiskBudget:
    env = cast(Env, type("Clocked", (), {"clock": TrioClock(), "rng": random.Random(1)})())
    return DiskBudget(env, a.store, bytes_max=bytes_max, may_write=lambda: True, every_s=60.0)


async def ended(a, key: str, outcome: Outcome = DONE) -> str:
    """A task of one step with a large input that ended."""
    task_id = await a.one(key, payload=random.Random(key).randbytes(20_000))
    await a.run(await a.step(task_id), outcome)
    return task_id


async def cancelled(a, key: str) -> str:
    task_id = await a.one(key, payload=random.Random(key).randbytes(20_000))
    await a.cancel(task_id)
    await a.obey(task_id)
    return task_id


async def used(a) -> int:
    return await a.store.read(database_bytes)


async def kept(a) -> set[str]:
    return {row.key for row in await a.store.read(lambda reader: reader.select("tasks", "deleted = 0"))}


async def forget(a) -> None:
    """As when all members have seen everything."""
    await a.store.adopt(Stable(a.store.vector.copy(), a.store.vector.copy()))
    await a.write(lambda tx: tx.collect_garbage())


async def test_what_is_deleted_frees_about_what_was_estimated(tmp_path, autojump_clock):
    async with desk(tmp_path) as a:
        tasks = [await ended(a, f"t{number}") for number in range(10)]
        before = await used(a)
        estimated = await a.store.read(lambda reader: sum(task_bytes(reader, SPACE, key) for key in tasks[:5]))
        await a.write(
            lambda tx: retention.purge(
                tx, [(SPACE, key) for key in tasks[:5]], retention.Purged(), retention=disk_budget._AT_ONCE
            )
        )
        await forget(a)
        freed = before - await used(a)
        assert 0.7 < freed / estimated <= 1.2


async def test_the_oldest_successes_go_until_the_database_is_within_its_budget(tmp_path, autojump_clock, caplog):
    caplog.set_level(logging.INFO)
    async with desk(tmp_path) as a:
        dead = await ended(a, "dead", REJECTED)
        gone = await cancelled(a, "cancelled")
        done = [await ended(a, f"t{number}") for number in range(6)]
        running = await a.one("open", payload=b"x" * 20_000)
        budget = keeper(a, await used(a) - 50_000)

        assert await budget.keep() is False
        assert await kept(a) == {dead, gone, running, *done[3:]}
        assert budget.deleted_total == 3
        # Their pages are still in use, and yet nothing more goes: it would free nothing sooner.
        for _ in range(3):
            assert await budget.keep() is False
        assert budget.deleted_total == 3
        assert budget.refusal(await used(a)) is None

        await forget(a)
        await budget.keep()
        assert await used(a) <= budget.bytes_max
        assert len(await kept(a)) == 6
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 2
        assert "over diskBudgetBytes" in told[0]
        assert "within diskBudgetBytes again: 3 tasks" in told[1]


async def test_dead_letters_go_last_and_open_tasks_never(tmp_path, autojump_clock, caplog):
    async with desk(tmp_path) as a:
        dead = await ended(a, "dead", REJECTED)
        gone = await cancelled(a, "cancelled")
        done = await ended(a, "done")
        task = await a.submit(workflow(a=[], b=["a"]), "blocked")
        await a.run(await a.step(task.task_id, "a"))  # one of its steps succeeded, the other one is open
        running = await a.one("running", payload=b"x" * 20_000)
        await a.claim(await a.step(running))
        budget = keeper(a, await used(a) - 15_000)
        for left in ({dead, gone}, {dead}, set()):
            await budget.keep()
            assert await kept(a) == {task.task_id, running, *left}
            await forget(a)
            budget.bytes_max = await used(a) - 15_000
        assert done not in await kept(a)
        assert not budget.is_exhausted

        for _ in range(2):
            await budget.keep()
        assert budget.is_exhausted
        assert await kept(a) == {task.task_id, running}
        assert sum("nothing that ended is left" in record.getMessage() for record in caplog.records) == 1
        assert "nothing that ended is left to delete" in (budget.refusal(await used(a)) or "")
        assert budget.refusal(budget.bytes_max) is None  # what was freed meanwhile is room


async def test_other_namespaces_give_what_is_older_there(tmp_path, autojump_clock, monkeypatch):
    monkeypatch.setattr(disk_budget, "LOOK_TASKS_MAX", 2)
    async with desk(tmp_path) as a:
        tasks = []
        for number in range(8):
            monkeypatch.setattr("tests.node.work_desk.SPACE", ("zebra", "ant")[number % 2])
            tasks.append(await ended(a, f"t{number}"))
        budget = keeper(a, await used(a) - 90_000)
        await budget.keep()
        assert await kept(a) == set(tasks[budget.deleted_total :])
        assert budget.deleted_total == 5


async def test_a_portion_is_bounded_and_the_next_one_follows_soon(tmp_path, autojump_clock, monkeypatch):
    monkeypatch.setattr(disk_budget, "PORTION_TASKS_MAX", 2)
    monkeypatch.setattr(disk_budget.choose, "__kwdefaults__", {"tasks_max": 2})
    async with desk(tmp_path) as a:
        for number in range(6):
            await ended(a, f"t{number}")
        budget = keeper(a, await used(a) - 90_000)
        with trio.move_on_after(100.0):
            await budget.run()
        assert len(await kept(a)) == 1
        assert budget.deleted_total == 5


async def test_a_task_that_was_replayed_in_time_stays(tmp_path, autojump_clock):
    async with desk(tmp_path) as a:
        task_id = await ended(a, "t", REJECTED)
        (page, _) = await a.store.read(lambda reader: disk_budget.ended_page(reader, SPACE, (-1, ""), 1 << 50))
        await a.replay(task_id)
        await a.write(
            lambda tx: retention.purge(
                tx, [(each.namespace, each.key) for each in page], retention.Purged(), retention=disk_budget._AT_ONCE
            )
        )
        assert await kept(a) == {task_id}


async def test_a_task_whose_steps_have_not_all_arrived_stays(tmp_path, autojump_clock):
    async with desk(tmp_path) as a:
        task = await a.submit(Definition((step("one"), step("two"))))
        await a.run(await a.step(task.task_id, "one"))
        await a.write(lambda tx: tx.execute("DELETE FROM steps WHERE name = 'two'"))
        assert (await a.store.read(lambda reader: disk_budget.ended_page(reader, SPACE, (-1, ""), 1 << 50)))[0] == []


# --- in a mesh ---


@pytest.fixture
async def world(tmp_path):
    async with simulated_world(tmp_path) as world:
        yield world


async def is_forgotten(*hosts) -> bool:
    return not any(host.node.store.has_tombstones for host in hosts)


async def test_a_mesh_keeps_within_its_budget_and_refuses_what_does_not_fit(world, autojump_clock):
    a = world.host("a", slots=1, disk_budget_bytes=700_000, retention_interval_ms=5_000)
    b = world.host("b", slots=1)
    await world.up()
    for number in range(30):
        await a.wait(await a.submit(input=f"{number}" * 20_000))
    await trio.sleep(10.0)
    await world.until(lambda: is_forgotten(a, b), 600.0)
    await world.until(world.agree)
    health = await a.admin("health")
    assert (health["ok"], health["diskBudgetBytes"]) == (True, 700_000)
    assert 0 < health["databaseBytes"] <= 700_000
    deleted = a.node.disk_budget.deleted_total
    assert len(await a.rows("tasks")) == len(await b.rows("tasks")) == 30 - deleted
    assert 10 < deleted < 30
    text = (await a.admin("metrics"))["text"]
    assert "relaymesh_disk_budget_bytes 700000.0" in text
    assert f"relaymesh_tasks_deleted_for_budget_total {deleted}.0" in text

    async def fill():
        for _ in range(40):
            await a.submit("sleep", input="0" * 40_000 + "100000")
            await trio.sleep(20.0)

    with pytest.raises(UnavailableError, match=r"disk_budget: .*diskBudgetBytes \(700000\).*nothing .*try again"):
        await fill()
    assert "no new task is taken" in (await a.admin("health"))["problems"][0]
    assert await b.submit()  # it has no budget of its own


async def test_beside_a_member_that_is_away_no_more_than_needed_is_deleted_and_the_file_stays_bounded(
    world, autojump_clock
):
    a = world.host("a", disk_budget_bytes=700_000, retention_interval_ms=5_000)
    b = world.host("b")
    await world.up()
    await world.until(lambda: a.sees("b") == "ALIVE")
    await b.crash()

    async def work(count):
        for number in range(count):
            await a.wait(await a.submit(input=f"{number}" * 20_000))
            await trio.sleep(2.0)

    await work(18)
    await trio.sleep(300.0)
    kept = [row for row in await a.rows("tasks") if not row.deleted]
    assert 5 < len(kept) < 18
    assert not a.node.disk_budget.is_exhausted
    with pytest.raises(UnavailableError, match=r"disk_budget: .*wait for members that are away"):
        await work(100)
    assert (await a.admin("health"))["databaseBytes"] < 1_000_000
    assert len([row for row in await a.rows("tasks") if not row.deleted]) > 5
