"""The queue table says at every moment what `rebuild` would say, and a claim takes from it in the right order."""

from __future__ import annotations

import contextlib
import tempfile
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.errors import ConflictError
from mesh.ids import Origin
from node.env import Outcome
from node.work import transitions, work_queue
from node.work.definition import Definition, Limits, parse_workflow
from node.work.history import Action
from node.work.holds import Scope, hold, release
from node.work.status import ended_names, step_status
from node.work.tables import Status
from node.work.work_queue import Queued, State, expired_entries, next_due_ms, next_entry, ripen, unplaceable
from tests.node.work_desk import DONE, FAILED, SPACE, desks, step, workflow

FAR = 1 << 60
REJECTED = Outcome(kind="rejected", error="not like this")
OUTCOMES = {
    "done": DONE,
    "fail": FAILED,
    "reject": REJECTED,
    "snooze": Outcome(kind="snoozed", snooze_ms=30_000, error="later"),
}


def shaped(*steps):
    return parse_workflow({"steps": [{"agent": "echo", **each} for each in steps]}, Limits())


@pytest.fixture
async def a(tmp_path):
    async with desks(tmp_path, "a") as (a,):
        yield a


async def next_of(desk, now_ms=FAR, priorities=(0, 1, 2), full_agents=(), fresh_after=None, **more):
    def find(tx):
        ripen(tx, now_ms=now_ms)
        return next_entry(
            tx, priorities=priorities, now_ms=now_ms, full_agents=list(full_agents), fresh_after=fresh_after, **more
        )

    return await desk.write(find)


async def test_children_become_claimable_when_all_parents_succeeded(a):
    task_id = (await a.submit(workflow(x=[], y=[], z=["x", "y"]))).task_id
    steps = await a.steps(task_id)
    assert set(await a.queued()) == {steps["x"].key, steps["y"].key}
    await a.run(steps["x"])
    assert set(await a.queued()) == {steps["y"].key}
    await a.run(steps["y"])
    assert set(await a.queued()) == {steps["z"].key}


async def test_a_replayed_parent_takes_its_child_out_again(a):
    task_id = (await a.submit(workflow(x=[], y=["x"]))).task_id
    steps = await a.steps(task_id)
    await a.run(steps["x"])
    await a.replay(task_id, "x")
    assert set(await a.queued()) == {steps["x"].key}


async def test_a_step_that_continues_is_queued_below_a_failure_and_taken_out_by_a_replay(a):
    steps = [{"id": "x", "agent": "echo"}, {"id": "y", "agent": "echo", "dependsOn": ["x"]}]
    steps += [{"id": "z", "agent": "echo", "dependsOn": ["y"], "onFailure": "continue"}]
    task_id = (await a.submit(parse_workflow({"steps": steps}, Limits()))).task_id
    rows = await a.steps(task_id)
    await a.run(rows["x"], REJECTED)
    assert set(await a.queued()) == {rows["z"].key}  # y waits in vain
    await a.replay(task_id, "x")
    assert set(await a.queued()) == {rows["x"].key}
    await a.run((await a.steps(task_id))["x"])
    await a.run((await a.steps(task_id))["y"], REJECTED)
    claimed = await a.claim((await a.steps(task_id))["z"])
    assert claimed.job.parents == {}  # it failed: there is no output


CLEANUP = shaped({"id": "x"}, {"id": "y", "dependsOn": ["x"]}, {"id": "z", "dependsOn": ["y"], "onFailure": "continue"})


async def test_what_continues_is_queued_also_when_the_blocked_step_above_it_is_heard_of_last(tmp_path):
    async with desks(tmp_path, "a", "b") as (a, b):
        task_id = (await b.submit(CLEANUP)).task_id
        await b.run((await b.steps(task_id))["x"], REJECTED)
        rows = await b.steps(task_id)
        given = Queued(SPACE, rows["z"].key, "echo")
        await b.write(lambda tx: transitions.hand_over(tx, [given], me="b", to="a", why=""))
        for name in ("z", "x", "y"):
            row = (await b.steps(task_id))[name]
            await a.write(lambda tx, row=row: tx.merge(row))
        assert set(await a.queued()) == {rows["z"].key}


async def test_what_continues_is_queued_when_a_run_above_it_is_given_up_below_a_failure(a):
    task_id = (await a.submit(CLEANUP)).task_id
    await a.run((await a.steps(task_id))["x"])
    running = await a.claim((await a.steps(task_id))["y"])
    await a.replay(task_id, "x")
    await a.run((await a.steps(task_id))["x"], REJECTED)
    assert await a.queued() == {}
    await a.write(lambda tx: transitions.requeue(tx, running.step, me="a", action=Action.RELEASED, why="test"))
    assert set(await a.queued()) == {(await a.steps(task_id))["z"].key}
    assert await a.status(task_id) is Status.PENDING


async def test_a_retry_below_a_parent_that_failed_in_its_replay_waits_in_vain_and_the_task_has_ended(a):
    task_id = (await a.submit(CLEANUP)).task_id
    await a.run((await a.steps(task_id))["x"])
    running = await a.claim((await a.steps(task_id))["y"])
    await a.replay(task_id, "x")
    await a.finish(running, OUTCOMES["snooze"])
    assert await a.status(task_id) is Status.PENDING
    await a.run((await a.steps(task_id))["x"], REJECTED)
    assert set(await a.queued()) == {(await a.steps(task_id))["z"].key}
    await a.run((await a.steps(task_id))["z"])
    assert await a.status(task_id) is Status.DEAD_LETTER
    await a.replay_from(task_id, "x")
    await a.run((await a.steps(task_id))["x"])
    assert set(await a.queued()) == {running.step.key}


async def test_the_end_of_a_parent_reads_its_task_once_however_many_steps_continue(a, monkeypatch):
    pairs = [{"id": f"p{number}"} for number in range(30)]
    pairs += [{"id": f"c{number}", "dependsOn": [f"p{number}"], "onFailure": "continue"} for number in range(30)]
    looks = []
    monkeypatch.setattr(work_queue, "ended_names", lambda by_name: looks.append(1) or ended_names(by_name))
    task_id = (await a.submit(shaped(*pairs))).task_id
    assert not looks  # nothing has failed yet
    steps = await a.steps(task_id)
    await a.run(steps["p0"], REJECTED)
    await a.run(steps["p1"])
    assert len(looks) == 2
    assert {steps["c0"].key, steps["c1"].key} <= (await a.queued()).keys()


async def test_a_retry_is_due_after_its_delay_on_the_stamp_clock(a):
    task_id = await a.one()
    await a.run(await a.step(task_id), FAILED)
    row = await a.step(task_id)
    due_ms = (row.hlc >> 16) + row.integer("retry_delay_ms")
    assert await a.store.read(lambda reader: next_due_ms(reader, due_ms - 1)) == due_ms
    assert await a.store.read(lambda reader: next_due_ms(reader, due_ms)) is None
    assert await next_of(a, now_ms=due_ms - 1) is None
    assert (await next_of(a, now_ms=due_ms))[0].step_id == row.key


async def test_the_oldest_entry_of_the_first_class_that_has_one_comes_next(a):
    low = await a.step(await a.one("1", priority=2))
    normal = await a.step(await a.one("2", priority=1))
    await a.one("3", priority=1)
    assert await next_of(a) == (Queued(SPACE, normal.key, "echo"), 1)
    assert await next_of(a, priorities=(2, 0, 1)) == (Queued(SPACE, low.key, "echo"), 2)
    assert await next_of(a, priorities=(0,)) is None
    assert await next_of(a, full_agents=["echo"]) is None


async def test_while_the_gate_is_shut_only_what_was_made_here_since_then_is_found(tmp_path):
    async with desks(tmp_path, "a", "b") as (a, b):
        await a.one("old")
        shut_at = a.store.last_dot
        assert await next_of(a, fresh_after=shut_at) is None
        theirs = await b.step(await b.one("theirs"))
        await b.write(lambda tx: transitions.hand_over(tx, [Queued(SPACE, theirs.key, "echo")], me="b", to="a", why=""))
        await a.pull(b)
        assert theirs.key in await a.queued()
        assert await next_of(a, fresh_after=shut_at) is None
        fresh = await a.step(await a.one("fresh"))
        assert (await next_of(a, fresh_after=shut_at))[0].step_id == fresh.key


async def test_an_own_step_that_a_lost_disk_knew_is_no_fresh_one_however_late_its_stamp(tmp_path):
    async with desks(tmp_path, "a", "b") as (a, b):
        shut_at = a.store.last_dot
        elsewhere = await b.step(await b.one("old"))
        earlier = msgspec.structs.replace(
            elsewhere,
            node="a",
            origin=Origin("a", 77),
            seq=9,
            hlc=elsewhere.hlc + (1 << 40),
            values=elsewhere.values | {"owner": "a"},
        )
        await a.write(lambda tx: tx.merge(earlier))
        assert earlier.key in await a.queued()
        assert await next_of(a, fresh_after=shut_at) is None
        assert await next_of(a) is not None


async def test_what_cannot_run_here_is_never_next_but_found_for_others(a):
    await a.submit(Definition((step("x", "nowhere"), step("y", "nowhere"))))
    await a.one("pinned", node="b")
    assert await next_of(a) is None
    assert [entry.agent for entry in await a.store.read(lambda r: unplaceable(r, ["nowhere", "echo"], 10))] == [
        "nowhere",
        "nowhere",
        "echo",
    ]
    assert len(await a.store.read(lambda r: unplaceable(r, ["nowhere"], 1))) == 1

    a.abilities = a.abilities | {"nowhere"}
    assert await a.write(a.queue.rebuild) == 3
    assert (await next_of(a)) is not None


def _timeless(entry):
    return entry._replace(
        due_ms=0, expires_ms=0, runnable=State.READY if entry.runnable == State.NOT_DUE else entry.runnable
    )


# --- the law: incremental equals rebuilt ---

VERBS = (
    *("submit", "claim", "done", "fail", "reject", "requeue", "give", "take"),
    *("replay", "replay-from", "cancel", "obey", "pull", "push", "snooze", "expire", "hold", "release"),
)
SHAPES = (
    workflow(x=[]),
    workflow(x=[], y=["x"]),
    workflow(x=[], y=[], z=["x", "y"]),
    workflow(x=[], y=["x"], z=["y"]),
    shaped({"id": "x"}, {"id": "y", "dependsOn": ["x"]}, {"id": "z", "dependsOn": ["y"], "onFailure": "continue"}),
    shaped(
        {"id": "x", "expiresMs": 1},
        {"id": "y", "dependsOn": ["x"], "delayMs": 50_000, "expiresMs": 55_000},
        {"id": "z", "dependsOn": ["x", "y"], "onFailure": "continue", "delayMs": 1},
        {"id": "w", "dependsOn": ["z"], "expiresMs": 50_000},
    ),
)


class Play:
    """Random transitions at two nodes, as their rules allow them; after each, the laws are looked at."""

    def __init__(self, one, other):
        self.sides = (one, other)
        self.claims = {one.me: [], other.me: []}
        self.tasks = []

    async def act(self, verb, side, pick):
        desk, other = self.sides[side], self.sides[1 - side]
        open_tasks = [task for task in self.tasks if await self.knows(desk, task)]
        task_id = open_tasks[pick % len(open_tasks)] if open_tasks else None
        claims = self.claims[desk.me]
        if verb == "submit":
            shape = pick % len(SHAPES)
            self.tasks.append((await desk.submit(SHAPES[shape], str(shape))).task_id)
        elif verb == "claim":
            found = await next_of(desk)
            row = found and await desk.store.read(lambda reader: reader.get("steps", SPACE, found[0].step_id))
            claimed = row and await desk.claim(row)
            if claimed:
                claims.append(claimed)
        elif verb in OUTCOMES and claims:
            await desk.finish(claims.pop(pick % len(claims)), OUTCOMES[verb])
        elif verb == "requeue" and claims:
            claimed = claims.pop(pick % len(claims))
            await desk.write(
                lambda tx: transitions.requeue(tx, claimed.step, me=desk.me, action=Action.RELEASED, why="test")
            )
        elif verb == "give" and await desk.queued():
            key = sorted(await desk.queued())[pick % len(await desk.queued())]
            await desk.write(
                lambda tx: transitions.hand_over(tx, [Queued(SPACE, key, "echo")], me=desk.me, to=other.me, why="")
            )
        elif verb == "take" and task_id:
            for row in (await desk.steps(task_id)).values():
                if row.text("owner") == other.me:
                    await desk.take_over(row)
        elif verb == "replay" and task_id:
            steps = await desk.steps(task_id)
            ended = [name for name, row in steps.items() if step_status(row).is_terminal]
            if ended:
                await desk.replay(task_id, ended[pick % len(ended)])
        elif verb == "replay-from" and task_id:
            steps = await desk.steps(task_id)
            if steps:
                with contextlib.suppress(ConflictError):  # it, or one below, has not ended
                    await desk.replay_from(task_id, list(steps)[pick % len(steps)])
        elif verb == "cancel" and task_id:
            await desk.cancel(task_id)
        elif verb == "obey" and task_id:
            await desk.obey(task_id)
        elif verb == "pull":
            await desk.pull(other)
        elif verb == "push":
            rows = await other.store.read(lambda reader: reader.select("steps", order="key"))
            if rows:  # as a rumor brings it: alone, before what was written earlier
                await desk.write(lambda tx: tx.merge(rows[pick % len(rows)]))
        elif verb == "expire":
            for entry in await desk.store.read(lambda reader: expired_entries(reader, now_ms=FAR, limit=pick)):
                await desk.write(partial(transitions.expire, entry=entry, me=desk.me))
        elif verb == "hold":
            await desk.write(lambda tx: hold(tx, Scope("agent", "echo"), reason="", actor="test"))
        elif verb == "release":
            await desk.write(lambda tx: release(tx, [Scope("agent", "echo")]))

    async def knows(self, desk, task_id):
        return await desk.store.read(lambda reader: reader.get("tasks", SPACE, task_id)) is not None

    async def check(self):
        for desk in self.sides:
            incremental = await desk.queued()
            await desk.write(desk.queue.rebuild)
            rebuilt = await desk.queued()
            # A delay counts from the stamp that asked for it, or from now where that stamp is still to come here.
            due = {step_id: (incremental[step_id].due_ms, entry.due_ms) for step_id, entry in rebuilt.items()}
            assert all(before <= after < before + 60_000 for before, after in due.values())
            # A claim at the end of all days, as here, makes ready what is not due yet.
            assert {key: _timeless(each) for key, each in incremental.items()} == {
                key: _timeless(each) for key, each in rebuilt.items()
            }

    async def converge(self):
        one, other = self.sides
        successes = [
            (row.key, row.generation)
            for desk in self.sides
            for row in await desk.store.read(lambda reader: reader.select("steps"))
            if step_status(row) is Status.SUCCESS
        ]
        await one.pull(other)
        await other.pull(one)
        await self.check()
        assert await one.sums() == await other.sums()
        for key, generation in successes:
            row = await one.store.read(lambda reader, key=key: reader.get("steps", SPACE, key))
            assert row.generation > generation or step_status(row) is Status.SUCCESS


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from(VERBS), st.integers(0, 1), st.integers(0, 11)), min_size=5, max_size=40),
)
def test_the_queue_follows_every_transition_and_replicas_agree_in_the_end(moves):
    async def main(root):
        async with desks(root, "a", "b") as (a, b):
            play = Play(a, b)
            await play.act("submit", 0, 2)
            for verb, side, pick in moves:
                await play.act(verb, side, pick)
                await play.check()
            await play.converge()

    with tempfile.TemporaryDirectory() as folder:
        trio.run(main, Path(folder))
