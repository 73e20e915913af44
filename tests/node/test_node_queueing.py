"""Whole nodes together: delays, expiry, holds, drain and batches, through the commands that a client sends."""

from __future__ import annotations

import pytest
import trio

from mesh.errors import ConfigError, LimitError, NotFoundError
from node.env import Outcome
from node.work import transitions
from node.work.definition import Limits, parse_workflow
from node.work.work_queue import Queued
from tests.node.simulated_env import simulated_world
from tests.node.work_desk import SPACE, desks


@pytest.fixture
async def world(tmp_path):
    async with simulated_world(tmp_path) as world:
        yield world


async def mesh(world, *names, **more):
    hosts = [world.host(name, **more) for name in names]
    await world.up()
    return hosts


# --- delay and expiry ---


async def test_a_delayed_task_starts_after_its_delay_and_explain_says_why_not_before(world, autojump_clock):
    (a,) = await mesh(world, "a")
    task_id = await a.submit(input="x", delayMs=30_000)
    began = trio.current_time()
    await trio.sleep(10)
    told = (await a.admin("explain", taskId=task_id))["steps"][0]["summary"]
    assert "It was submitted with a delay of 30 s: due in 20." in told or "due in 19." in told
    assert a.jobs == []
    await a.wait(task_id)
    assert 29.9 < trio.current_time() - began < 31


async def test_a_childs_delay_counts_from_the_submit(world, autojump_clock):
    (a,) = await mesh(world, "a")
    began = trio.current_time()
    task_id = await a.workflow(
        {"id": "x", "agent": "sleep", "input": "1"},
        {"id": "y", "agent": "echo", "dependsOn": ["x"], "delayMs": 5_000},
        {"id": "z", "agent": "echo", "dependsOn": ["x"], "delayMs": 500},
    )
    await world.until(lambda: _is(a, task_id, "z", "SUCCESS"))
    assert trio.current_time() - began < 2
    await a.wait(task_id)
    assert 4.9 < trio.current_time() - began < 6


async def test_a_slot_wakes_when_what_continues_is_freed_by_a_blocked_step_that_is_heard_of_last(
    world, tmp_path_factory, autojump_clock
):
    (a,) = await mesh(world, "a")
    async with desks(tmp_path_factory.mktemp("desks"), "zoe") as (zoe,):
        steps = [{"id": "x", "agent": "echo"}, {"id": "y", "agent": "echo", "dependsOn": ["x"]}]
        steps += [{"id": "z", "agent": "echo", "dependsOn": ["y"], "onFailure": "continue"}]
        task_id = (await zoe.submit(parse_workflow({"steps": steps}, Limits()))).task_id
        await zoe.run((await zoe.steps(task_id))["x"], Outcome(kind="rejected", error="no"))
        z = Queued(SPACE, (await zoe.steps(task_id))["z"].key, "echo")
        await zoe.write(lambda tx: transitions.hand_over(tx, [z], me="zoe", to="a", why=""))
        rows = await zoe.steps(task_id)
        await a.node.store.write(lambda tx: [tx.merge(rows[name]) for name in ("z", "x")])
        await trio.sleep(0.1)
        assert a.jobs == []
        await a.node.store.write(lambda tx: tx.merge(rows["y"]))
        await trio.sleep(0.1)
        assert [job.step_name for job in a.jobs] == ["z"]


async def _is(host, task_id, name, status):
    return await host.status(task_id, name) == status


async def test_a_delay_survives_the_death_of_its_owner_and_does_not_begin_again(world, autojump_clock):
    a, b, _ = await mesh(world, "a", "b", "c")
    began = trio.current_time()
    task_id = await a.submit(input="x", delayMs=30_000)
    await world.until(lambda: b.knows(task_id))
    await trio.sleep(15)
    await a.crash()
    view = await b.wait(task_id)
    assert view["status"] == "SUCCESS"
    assert 29.9 < trio.current_time() - began < 33


async def test_a_delay_survives_a_restart(world, autojump_clock):
    (a,) = await mesh(world, "a")
    began = trio.current_time()
    task_id = await a.submit(input="x", delayMs=30_000)
    await trio.sleep(5)
    await a.crash()
    await a.start()
    await a.wait(task_id)
    assert 29.9 < trio.current_time() - began < 32


async def test_what_expires_behind_a_busy_slot_ends_in_time_and_never_starts(world, autojump_clock):
    (a,) = await mesh(world, "a", slots=1)
    busy = await a.submit("sleep", input="50")
    await world.until(lambda: a.jobs)
    began = trio.current_time()
    task_id = await a.submit(input="x", expiresMs=5_000)
    view = await a.wait(task_id)
    assert trio.current_time() - began < 6
    assert (view["status"], view["lastError"]) == (
        "CANCELLED",
        "expired: it did not begin within 5 s of its submit",
    )
    explained = (await a.admin("explain", taskId=task_id))["steps"][0]
    assert explained["summary"].startswith("It expired: it did not begin within 5 s")
    assert any("had not begun within 5 s" in line["text"] for line in explained["timeline"])
    await a.wait(busy, 100)
    assert [job.agent for job in a.jobs] == ["sleep"]


async def test_a_child_that_becomes_ready_too_late_expires(world, autojump_clock):
    (a,) = await mesh(world, "a")
    task_id = await a.workflow(
        {"id": "x", "agent": "sleep", "input": "8"},
        {"id": "y", "agent": "echo", "dependsOn": ["x"], "expiresMs": 5_000},
    )
    assert (await a.wait(task_id))["status"] == "CANCELLED"
    assert [job.step_name for job in a.jobs] == ["x"]
    assert await a.status(task_id, "x") == "SUCCESS"


async def test_what_began_in_time_is_tried_again_after_its_expiry(world, autojump_clock):
    (a,) = await mesh(world, "a")
    task_id = await a.submit("fail", expiresMs=200, maxAttempts=3)
    assert (await a.wait(task_id))["status"] == "DEAD_LETTER"
    assert len(a.jobs) == 3


async def test_a_step_with_a_roster_expires_where_its_majority_supports_its_owner(world, autojump_clock):
    a, b, c = await mesh(world, "a", "b", "c", slots=1)
    await world.until(lambda: len(a.node.gossip.members.all()) == 3)
    for host in (a, b, c):
        await host.submit("sleep", input="50", node=host.name)
    await world.until(lambda: a.jobs and b.jobs and c.jobs)
    task_id = await a.submit(input="x", onPartition="wait", expiresMs=5_000)
    alone = await a.submit(input="y", onPartition="wait", expiresMs=30_000)
    assert (await a.wait(task_id))["status"] == "CANCELLED"
    world.network.cut({"a"}, {"b", "c"})
    await trio.sleep(40)
    assert await a.status(alone) == "PENDING"
    world.network.heal()
    assert (await b.wait(alone))["status"] == "CANCELLED"
    assert not [job for host in (a, b, c) for job in host.jobs if job.agent == "echo"]


# --- holds ---


@pytest.mark.parametrize(
    ("named", "key"),
    [({"mesh": True}, "mesh"), ({"node": "a"}, "node a"), ({}, "node a"), ({"agent": "echo"}, "agent echo")],
)
async def test_a_pause_keeps_new_work_back_and_lets_running_work_end(world, autojump_clock, named, key):
    (a,) = await mesh(world, "a", slots=2)
    running = await a.submit("sleep", input="5")
    await world.until(lambda: a.jobs)
    answer = await a.admin("pause", reason="tests", **named)
    assert (answer["scope"], answer["paused"], answer["changed"]) == (key, True, True)
    task_id = await a.submit(input="x")
    await a.wait(running)
    await trio.sleep(30)
    assert len(a.jobs) == 1
    told = (await a.admin("explain", taskId=task_id))["steps"][0]["summary"]
    assert "was paused by olga (tests)" in told
    health = await a.admin("health")
    assert health["ok"]
    assert len(health["holds"]) == 1
    assert (health["startsNothing"] is None) == (key == "agent echo")
    (held,) = await a.admin("holds")
    assert (held["scope"], held["reason"], held["actor"]) == (key, "tests", "olga")

    await a.crash()
    await a.start()
    await trio.sleep(10)
    assert len(a.jobs) == 1
    assert (await a.admin("resume", **named))["resumed"]
    assert (await a.wait(task_id))["status"] == "SUCCESS"
    assert not (await a.admin("resume", **named))["resumed"]
    assert await a.admin("holds") == []


async def test_a_paused_agent_leaves_the_others_alone(world, autojump_clock):
    (a,) = await mesh(world, "a")
    await a.admin("pause", agent="echo")
    held = await a.submit(input="x")
    await a.wait(await a.submit("sleep", input="0"))
    assert [job.agent for job in a.jobs] == ["sleep"]
    assert await a.status(held) == "PENDING"


async def test_a_pause_said_at_any_peer_holds_everywhere_and_one_of_a_node_sends_work_to_others(world, autojump_clock):
    a, b, c = await mesh(world, "a", "b", "c")
    await a.admin("pause", mesh=True)
    await world.until(lambda: _held(c, 1))
    task_id = await c.submit(input="x")
    await trio.sleep(20)
    assert [*a.jobs, *b.jobs, *c.jobs] == []
    await b.admin("resume", mesh=True)
    await c.wait(task_id)

    await a.admin("pause", node="c")
    await world.until(lambda: _held(c, 1))
    before = len(c.jobs)
    task_id = await c.submit(input="x")
    await c.wait(task_id)
    assert len(c.jobs) == before


async def _held(host, count):
    return len(await host.admin("holds")) == count


async def test_a_paused_owners_steps_are_taken_over_when_it_dies(world, autojump_clock):
    a, b, _ = await mesh(world, "a", "b", "c")
    await a.admin("pause", node="a")
    await a.admin("pause", agent="echo")
    task_id = await a.submit(input="x")
    await world.until(lambda: b.knows(task_id))
    await trio.sleep(5)
    assert (await b.step(task_id)).text("owner") == "a"  # its agent is paused: nobody asks for it
    await a.crash()
    await world.until(lambda: _moved(b, task_id))
    await b.admin("resume", agent="echo")
    assert (await b.wait(task_id))["status"] == "SUCCESS"


async def _moved(host, task_id):
    return (await host.step(task_id)).text("owner") != "a"


async def test_what_is_paused_expires_all_the_same(world, autojump_clock):
    (a,) = await mesh(world, "a")
    await a.admin("pause", mesh=True)
    assert (await a.wait(await a.submit(input="x", expiresMs=3_000)))["status"] == "CANCELLED"


async def test_bad_holds_are_refused(world, autojump_clock):
    (a,) = await mesh(world, "a")
    for named, error, says in (
        ({"agent": "ehco"}, NotFoundError, "no agent 'ehco' is known here; known: echo"),
        ({"node": "z"}, NotFoundError, "no node 'z'"),
        ({"node": "a", "mesh": True}, ConfigError, "give one of"),
        ({"mesh": "yes"}, ConfigError, "true or false"),
        ({"reason": "x" * 257}, ConfigError, "reason"),
    ):
        with pytest.raises(error, match=says):
            await a.admin("pause", **named)
    assert await a.admin("holds") == []


# --- drain ---


async def test_a_drained_node_hands_over_what_waits_and_ends_what_runs(world, autojump_clock):
    a, b = await mesh(world, "a", "b", slots=1)
    running = await a.submit("sleep", input="8")
    await world.until(lambda: [*a.jobs, *b.jobs])
    (owner,) = [host for host in (a, b) if host.jobs]
    other = b if owner is a else a
    delayed = await owner.submit(input="x", delayMs=60_000)
    pinned = await owner.submit(input="x", node=owner.name)
    answer = await other.admin("drain", node=owner.name, timeoutMs=1)
    assert not answer["drained"]
    answer = await owner.admin("drain", timeoutMs=60_000)
    assert (answer["drained"], answer["left"]) == (False, {"running": 0, "waiting": 1, "blocked": 0})
    assert (await owner.step(delayed)).text("owner") == other.name
    assert (await owner.step(pinned)).text("owner") == owner.name
    assert await owner.status(running) == "SUCCESS"
    late = await owner.submit(input="y")
    await owner.wait(late)
    assert [job.agent for job in owner.jobs] == ["sleep"]
    assert (await other.admin("resume", node=owner.name))["resumed"]
    await owner.wait(pinned)
    assert (await owner.admin("drain", timeoutMs=30_000))["drained"]


async def test_every_drain_that_waits_hears_that_the_node_is_empty(world, autojump_clock):
    (a,) = await mesh(world, "a", slots=2)
    await a.submit("sleep", input="5")
    await a.submit("sleep", input="9")
    await world.until(lambda: len(a.jobs) == 2)
    ended = []

    async def drain(begin_s):
        await trio.sleep(begin_s)
        ended.append((await a.admin("drain", timeoutMs=3_600_000))["drained"])

    first = trio.current_time()
    with trio.move_on_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain, 0)
            await world.until(lambda: a.node.runtime.idle_slots == 0 and len(a.node.runtime.running()) == 1)
            nursery.start_soon(drain, 0.05)  # while the other one waits for the burst to be over
    assert ended == [True] * 2
    assert trio.current_time() - first < 20


# --- batches ---


async def test_a_batch_tells_of_each_task_and_stores_those_that_are_right(world, autojump_clock):
    (a,) = await mesh(world, "a")
    await a.submit(input="other", idempotencyKey="taken")
    commits = []
    a.node.store.on_commit(lambda commit: commits.append(commit))
    answer = await a.admin(
        "submit-batch",
        tasks=[
            {"agent": "echo", "input": "1", "idempotencyKey": "k"},
            {"agent": "echo", "input": {"n": 1}, "priority": "low", "delayMs": 100},
            {"agent": "ehco"},
            {"agent": "echo", "input": "1", "idempotencyKey": "k"},
            {"agent": "echo", "idempotencyKey": "taken"},
            {"steps": [{"id": "x", "agent": "echo"}, {"id": "y", "agent": "echo", "dependsOn": ["x"]}]},
            {"agent": "echo", "onPartition": "wait"},
            {"agent": "echo", "notBeforeMs": 1 << 46},
            "text",
        ],
    )
    results = answer["results"]
    assert [result["index"] for result in results] == list(range(9))
    assert ["error" in result for result in results] == [False, False, True, False, True, False, True, True, True]
    assert results[0]["taskId"] == results[3]["taskId"]
    assert (results[0]["deduplicated"], results[3]["deduplicated"]) == (False, True)
    assert [results[n]["error"]["code"] for n in (2, 4, 6, 7, 8)] == [
        "config",
        "conflict",
        "config",
        "config",
        "config",
    ]
    assert (answer["accepted"], answer["deduplicated"], answer["refused"]) == (4, 1, 5)
    submitted = [commit for commit in commits if any(change.after.table == "tasks" for change in commit.changes)]
    assert len(submitted) == 1
    for result in (results[0], results[1], results[5]):
        assert (await a.wait(result["taskId"]))["status"] == "SUCCESS"
    assert len(await a.rows("tasks")) == 4
    assert await a.submit(input="1", idempotencyKey="k") == results[0]["taskId"]


async def test_a_batch_that_is_too_much_in_all_is_refused_whole(world, autojump_clock):
    (a,) = await mesh(world, "a", payload_max_bytes=1000, submit_max_bytes=1500)
    for tasks, error, says in (
        ([], ConfigError, "must be a list"),
        ({"agent": "echo"}, ConfigError, "must be a list"),
        ([{"agent": "echo"}] * 1001, LimitError, "the limit is 1000"),
        ([{"agent": "echo", "input": "x" * 900}] * 2, LimitError, "submitMaxBytes"),
    ):
        with pytest.raises(error, match=says):
            await a.admin("submit-batch", tasks=tasks)
    assert await a.rows("tasks") == []
    answer = await a.admin("submit-batch", tasks=[{"agent": "echo", "input": "x" * 1001}, {"agent": "echo"}])
    assert ["error" in result for result in answer["results"]] == [True, False]


async def test_a_batch_waits_for_its_replicas(world, autojump_clock):
    a, b = await mesh(world, "a", "b")
    answer = await a.admin("submit-batch", tasks=[{"agent": "echo", "delayMs": 50_000}] * 20, replicas=1)
    assert answer["replicated"] == 1
    assert len(await b.rows("tasks")) == 20
