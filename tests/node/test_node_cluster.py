"""Whole nodes together: real stores, real gossip and RPC, a simulated network and simulated time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
import trio

from mesh.bundles import make_bundle
from mesh.errors import LimitError
from mesh.fences import Fence
from mesh.ids import Origin
from mesh.rows import Row
from node.env import AgentInfo, Job, Outcome
from node.node import TOPIC_BUNDLE
from node.storage.store import Commit
from node.storage.transaction import Change
from node.streams.rpc import Verb
from tests.node.simulated_env import BreakableVfs, Host, World, simulated_world


@pytest.fixture
async def world(tmp_path):
    async with simulated_world(tmp_path) as world:
        yield world


@pytest.fixture
def vfs(request):
    vfs = BreakableVfs(f"breakable-{request.node.name}")
    yield vfs
    vfs.unregister()


async def owner_of(task_id: str, seen_from: Host, name: str | None = None) -> Host:
    step = await seen_from.step(task_id, name)
    assert step is not None
    return seen_from.world.hosts[step.text("owner")]


def accepted(world: World, task_id: str) -> list[tuple[str, str]]:
    """(node, fence) of every SUCCESS that any node committed for the task's steps."""
    return [
        (host.name, Fence.of(row, host.name).encode())
        for host in world.hosts.values()
        for row in host.results
        if row.text("task_id") == task_id
    ]


def attempts(world: World, task_id: str) -> Counter[str]:
    """How often each host ran something of the task."""
    return Counter(host.name for host in world.hosts.values() for job in host.jobs if job.task_id == task_id)


# --- spreading ---


async def test_work_submitted_to_any_node_runs_once_and_all_nodes_show_its_result(world, autojump_clock):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()

    ids = [await host.submit(input=f"hello from {host.name}") for host in (a, b, c)]
    for task_id, submitted_at, asked in zip(ids, (a, b, c), (b, c, a), strict=True):
        view = await asked.wait(task_id)
        assert (view["status"], view["resultPayload"]) == ("SUCCESS", f"hello from {submitted_at.name}")
        assert len(accepted(world, task_id)) == sum(attempts(world, task_id).values()) == 1
    await world.until(world.agree)


async def test_idle_nodes_ask_a_busy_one_for_work(world, autojump_clock):
    a, b, c = (world.host(name, slots=2) for name in "abc")
    await world.up()

    ids = [await a.submit("sleep", input="2") for _ in range(12)]
    began = trio.current_time()
    for task_id in ids:
        await a.wait(task_id)

    assert trio.current_time() - began < 12 * 2 / 2  # less than one node alone would need
    shares = Counter(job.task_id for host in (a, b, c) for job in host.jobs)
    assert all(count == 1 for count in shares.values())
    assert all(len(host.jobs) >= 2 for host in (a, b, c))


async def test_everything_ends_while_every_fifth_datagram_is_lost(world, autojump_clock):
    a, b, c = (world.host(name) for name in "abc")
    world.network.loss = 0.2
    await world.up()

    ids = [await host.submit(input=str(number)) for number in range(5) for host in (a, b, c)]
    for task_id in ids:
        for host in (a, b, c):
            assert (await host.wait(task_id))["status"] == "SUCCESS"
    await world.until(world.agree)
    assert all(len(accepted(world, task_id)) == 1 for task_id in ids)


async def test_a_workflow_runs_in_the_order_of_its_edges_and_hands_outputs_on(world, autojump_clock):
    a, b, _ = (world.host(name) for name in "abc")
    await world.up()

    task_id = await a.workflow(
        {"id": "left", "agent": "echo", "input": "L"},
        {"id": "right", "agent": "echo", "input": "R"},
        {"id": "both", "agent": "join", "dependsOn": ["left", "right"]},
    )
    view = await b.wait(task_id)

    assert view["resultPayload"] == '{"both": "L+R"}'
    assert all(step["attempt"] == 1 for step in view["steps"])


async def test_a_node_that_is_cut_off_goes_on_alone(world, autojump_clock):
    a, _, _ = (world.host(name) for name in "abc")
    await world.up()
    world.network.cut("a", "bc")

    for _ in range(3):
        await a.wait(await a.submit(input="alone"))
        await trio.sleep(10)
    assert a.sees("b") == "DEAD"


# --- one agent, one place ---


async def special(job: Job) -> Outcome:
    await trio.sleep(0.05)
    return Outcome(kind="success", result=b"special:" + job.payload)


async def test_a_step_goes_to_the_only_node_that_has_its_agent(world, autojump_clock):
    a, b, c = world.host("a"), world.host("b"), world.host("c", agents={"special": special})
    await world.up()

    task_id = await a.submit("special", input="x")
    view = await a.wait(task_id)

    assert view["resultPayload"] == "special:x"
    assert [step["owner"] for step in view["steps"]] == ["c"]
    assert await c.actions(task_id) == ["handed_over"]
    told = (await b.admin("explain", taskId=task_id))["steps"][0]
    assert "a handed it over to c: its owner cannot run it" in [line["text"] for line in told["timeline"]]


async def test_a_step_waits_for_its_only_node_and_explain_says_so(world, autojump_clock):
    a, _, c = world.host("a"), world.host("b"), world.host("c", agents={"special": special})
    await world.up()
    await c.crash()
    await world.until(lambda: a.sees("c") == "DEAD")

    task_id = await a.submit("special", input="x")
    await trio.sleep(20)
    told = (await a.admin("explain", taskId=task_id))["steps"][0]
    assert told["status"] == "PENDING"
    assert "c could, but is DEAD." in told["summary"]
    assert "a has no agent special" in told["summary"]

    await c.start()
    assert (await a.wait(task_id, timeout_s=120))["resultPayload"] == "special:x"


async def test_work_for_an_agent_that_is_away_does_not_hold_up_other_work(world, autojump_clock):
    a = world.host("a")
    b = world.host("b", agents={"special": special})
    c = world.host("c", agents={"other": special})
    await world.up()
    await b.crash()
    await world.until(lambda: a.sees("b") == "DEAD")

    async with trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(lambda number=number: a.submit("special", input=str(number)))
    task_id = await a.submit("other", input="x")

    assert (await a.wait(task_id))["resultPayload"] == "special:x"
    assert [job.task_id for job in c.jobs] == [task_id]


async def test_a_peer_that_dies_right_after_accepting_a_step_loses_nothing(world, autojump_clock):
    async def never(job: Job) -> Outcome:
        await trio.sleep(5)
        return Outcome(kind="success", result=b"done")

    a = world.host("a")
    b, c = (world.host(name, agents={"special": never}) for name in "bc")
    await world.up()

    task_id = await a.submit("special")
    await world.until(lambda: a.node.ownership.handed_over_total, every_s=0.001)
    first = await owner_of(task_id, a)
    assert first in (b, c)
    await first.crash()

    view = await a.wait(task_id)
    other = c if first is b else b
    assert view["steps"][0]["owner"] == other.name
    assert [node for node, _ in accepted(world, task_id)] == [other.name]


async def test_labels_and_pins_decide_where_a_step_runs(world, autojump_clock):
    a, *_ = world.host("a"), world.host("b", labels={"site": "north"}), world.host("c", labels={"site": "south"})
    await world.up()

    north = await a.submit(input="n", labels={"site": "north"})
    pinned = await a.submit(input="p", node="c")
    await a.wait(north)
    await a.wait(pinned)

    assert attempts(world, north) == {"b": 1}
    assert attempts(world, pinned) == {"c": 1}


async def test_an_agent_never_runs_more_often_at_once_than_it_allows(world, autojump_clock):
    most = 0

    async def single(job: Job) -> Outcome:
        nonlocal most
        most = max(most, a.executor.running_now)
        await trio.sleep(0.5)
        return Outcome(kind="success")

    a = world.host("a", agents={"single": single}, infos={"single": AgentInfo(name="single", kind="x", concurrency=1)})
    await world.up()

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(lambda number=number: a.submit("single", input=str(number)))
    for task in await a.admin("tasks"):
        await a.wait(task["taskId"])

    assert most == 1


async def test_a_large_input_and_a_large_result_travel_before_they_are_needed(world, autojump_clock):
    large = bytes(range(256)) * 2_000

    async def measure(job: Job) -> Outcome:
        parents = b"".join(job.parents.values())
        return Outcome(kind="success", result=b"%d" % len(parents))

    a = world.host("a")
    world.host("b", agents={"special": special})
    world.host("c", agents={"measure": measure})
    await world.up()

    task_id = await a.workflow(
        {"id": "big", "agent": "special", "input": large.decode("latin-1")},
        {"id": "size", "agent": "measure", "dependsOn": ["big"]},
    )
    view = await a.wait(task_id)

    assert view["status"] == "SUCCESS"
    assert attempts(world, task_id) == {"b": 1, "c": 1}
    sent = len(large.decode("latin-1").encode())
    assert view["resultPayload"] == f'{{"size": "{sent + len("special:")}"}}'


# --- losing a node ---


async def test_a_killed_owners_running_step_runs_again_elsewhere_with_one_result(world, autojump_clock):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()
    task_id = await a.submit("sleep", input="20")
    await world.until(lambda: a.jobs)
    await world.until(world.agree)
    await a.crash()

    dead_after = await world.until(lambda: b.sees("a") == "DEAD" and c.sees("a") == "DEAD")
    taken_after = await world.until(lambda: b.jobs or c.jobs)
    view = await b.wait(task_id)
    assert dead_after < 10
    assert taken_after < 2
    assert (view["status"], view["steps"][0]["attempt"], view["steps"][0]["lostLeases"]) == ("SUCCESS", 1, 1)
    assert len(accepted(world, task_id)) == 1

    await a.start()
    await world.until(world.agree, limit_s=5)
    assert (await a.admin("task", taskId=task_id))["status"] == "SUCCESS"
    assert attempts(world, task_id)["a"] == 1
    told = (await a.admin("explain", taskId=task_id))["steps"][0]
    assert "started 2 times: its owner was gone during the run" in told["summary"]
    assert [run["accepted"] for run in told["runs"]] == [False, True]
    heir = told["owner"]
    assert [owner["node"] for owner in told["owners"]] == ["a", heir]
    assert told["owners"][0]["untilMs"] == told["owners"][1]["fromMs"]


async def test_waiting_steps_of_a_killed_owner_are_taken_over_too(world, autojump_clock):
    a, b, _ = world.host("a", slots=1), world.host("b", slots=1), world.host("c", slots=1)
    await world.up()
    ids = [await a.submit("sleep", input="3") for _ in range(9)]
    await world.until(world.agree)
    await a.crash()

    for task_id in ids:
        assert (await b.wait(task_id))["status"] == "SUCCESS"
        assert len(accepted(world, task_id)) == 1


async def test_a_node_alone_that_was_killed_runs_its_step_again_after_the_start(world, autojump_clock):
    a = world.host("a")
    await world.up()
    task_id = await a.submit("sleep", input="2")
    await world.until(lambda: a.jobs)
    await a.crash()
    await a.start()

    view = await a.wait(task_id)
    assert (view["status"], view["steps"][0]["attempt"]) == ("SUCCESS", 1)
    assert await a.actions(task_id) == ["lost"]


async def test_a_step_that_ends_five_processes_is_a_dead_letter(world, autojump_clock):
    a = world.host("a")
    await world.up()
    task_id = await a.submit("sleep", input="1000")
    for life in range(5):
        await world.until(lambda life=life: len(a.jobs) == life + 1)
        await a.crash()
        await a.start()

    view = await a.wait(task_id)
    assert view["status"] == "DEAD_LETTER"
    assert "poison" in view["lastError"]
    assert len(a.jobs) == 5


async def test_a_paused_owners_late_result_is_superseded_and_shown(world, autojump_clock):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()
    task_id = await a.submit("sleep", input="1")
    await world.until(lambda: a.jobs)
    await world.until(lambda: b.status(task_id), every_s=0.01)
    a.pause()
    await world.until(lambda: b.sees("a") == "DEAD")
    await b.wait(task_id)
    a.resume()

    await world.until(world.agree)
    winner = await owner_of(task_id, a)
    assert winner in (b, c)
    assert [node for node, _ in accepted(world, task_id)] == [winner.name]
    conflicts = await b.admin("lease-conflicts", taskId=task_id)
    assert [(conflict["action"], conflict["nodeId"]) for conflict in conflicts] in (
        [("superseded", "a")],
        [("aborted", "a")],
    )


async def test_a_short_pause_costs_an_owner_nothing(world, autojump_clock):
    a, b, _ = (world.host(name) for name in "abc")
    await world.up()
    task_id = await a.submit("sleep", input="4")
    await world.until(lambda: a.jobs)
    a.pause()
    await trio.sleep(1)
    a.resume()

    await b.wait(task_id)
    assert attempts(world, task_id) == {"a": 1}
    assert a.node.gate.pauses == 0


async def test_a_handler_may_run_ten_times_longer_than_the_dead_time(world, autojump_clock):
    a, b, _ = (world.host(name) for name in "abc")
    await world.up()
    dead_time_s = world.profile.dead_after_s(3)
    task_id = await a.submit("sleep", input=str(10 * dead_time_s))

    view = await b.wait(task_id, timeout_s=20 * dead_time_s)
    assert (view["status"], view["steps"][0]["leaseEpoch"]) == ("SUCCESS", 1)
    assert sum(attempts(world, task_id).values()) == 1


async def test_a_node_whose_store_fails_starts_nothing_and_its_work_is_taken_over(world, vfs, autojump_clock):
    a, b, c = world.host("a", vfs=vfs.name), world.host("b"), world.host("c")
    await world.up()
    task_id = await a.submit("sleep", input="3")
    await world.until(lambda: a.jobs)
    await world.until(world.agree)
    vfs.broken = True

    view = await b.wait(task_id)
    assert view["steps"][0]["owner"] in "bc"
    assert b.sees("a") == "ALIVE"
    assert (await a.admin("health"))["problems"] == ["the local store fails: look at the disk, then at the log"]
    members = {member["nodeId"]: member for member in await c.admin("members")}
    assert members["a"]["storeFailed"] is True

    vfs.broken = False
    await world.until(lambda: not a.node.store.failed)
    await world.until(world.agree)
    assert len({fence for _, fence in accepted(world, task_id)}) == 1
    assert (await a.wait(await a.submit(input="works again")))["status"] == "SUCCESS"


async def test_a_graceful_stop_gives_running_work_back_uncounted(world, autojump_clock):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()
    task_id = await a.submit("sleep", input="30")
    await world.until(lambda: a.jobs)
    await a.stop()

    await world.until(lambda: b.sees("a") == c.sees("a") == "LEFT", limit_s=2)
    view = await b.wait(task_id)
    assert (view["status"], view["steps"][0]["attempt"], view["steps"][0]["lostLeases"]) == ("SUCCESS", 1, 0)
    assert await b.actions(task_id) == ["released", "taken_over"]
    told = (await b.admin("explain", taskId=task_id))["steps"][0]
    assert any("its node stopped gracefully" in line["text"] for line in told["timeline"])


async def test_a_short_run_ends_before_a_graceful_stop_does(world, autojump_clock):
    a, b = world.host("a"), world.host("b")
    await world.up()
    task_id = await a.submit("sleep", input="2")
    await world.until(lambda: a.jobs)
    await a.stop()

    view = await b.wait(task_id)
    assert [node for node, _ in accepted(world, task_id)] == ["a"]
    assert view["steps"][0]["leaseEpoch"] == 1


async def test_more_than_half_of_the_mesh_gone_at_once_freezes_taking_over_for_a_while(world, autojump_clock):
    hosts = [world.host(name) for name in "abcde"]
    a, b = hosts[:2]
    await world.up()
    on_b = await b.submit("sleep", input="60")
    await world.until(lambda: b.jobs)
    await world.until(world.agree)
    world.network.cut("a", "bcde")

    # The suspicions run out, but no DEAD is published and nothing is taken.
    await world.until(lambda: not a.node.loop.may_reclaim())
    assert (await a.admin("mesh-recover"))["reclaimFrozen"] is True
    assert (await a.step(on_b)).text("owner") == "b"
    await world.until(lambda: a.node.loop.may_reclaim())
    await world.until(lambda: a.sees("b") == "DEAD")
    await world.until(lambda: a.jobs)

    world.network.heal()
    await world.until(world.agree, limit_s=120)


async def test_a_restarted_owner_does_not_run_again_what_others_finished_meanwhile(world, autojump_clock):
    a, b = world.host("a", slots=1), world.host("b")
    await world.up()
    b.node.ownership.leave()  # it asks for nothing, so that the second step waits at a
    await a.submit("sleep", input="50")
    waiting = await a.submit(input="mine")
    await world.until(lambda: a.jobs)
    await world.until(world.agree)
    await a.crash()
    b.node.ownership._leaving = False
    await b.wait(waiting)
    await a.start()

    await world.until(world.agree)
    await trio.sleep(10)
    assert attempts(world, waiting) == {"b": 1}


async def test_a_lease_that_nobody_took_during_a_pause_ends_under_a_new_epoch(world, autojump_clock):
    a, b = world.host("a"), world.host("b")
    await world.up()
    task_id = await a.submit("sleep", input="3", node="a")
    await world.until(lambda: a.jobs)
    a.pause()
    await world.until(lambda: b.sees("a") == "DEAD")
    a.resume()

    view = await b.wait(task_id)
    assert (view["status"], view["steps"][0]["leaseEpoch"], view["steps"][0]["attempt"]) == ("SUCCESS", 2, 1)
    assert a.node.gate.pauses == 1
    assert attempts(world, task_id) == {"a": 1}


def written_by_z(step: Row, seq: int, **changes: Any) -> Row:
    """The step as a node z would hand it on."""
    values = {**step.values, "owner": changes.pop("owner"), "status": "PENDING"}
    stamp = step.hlc + (seq << 16)
    return msgspec.structs.replace(
        step,
        node="z",
        origin=Origin("z", 1),
        seq=seq,
        hlc=stamp,
        lease_hlc=stamp,
        lease_epoch=step.lease_epoch + seq,
        values=values,
    )


async def test_a_run_that_takes_long_to_stop_may_meet_the_next_one_of_its_step(world, autojump_clock):
    async def stubborn(job: Job) -> Outcome:
        try:
            await trio.sleep(3)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)  # killing a process takes its time
            raise
        return Outcome(kind="success", result=job.fence.encode())

    a = world.host("a", agents={"stubborn": stubborn})
    await world.up()
    task_id = await a.submit("stubborn")
    await world.until(lambda: a.jobs)
    step = await a.step(task_id)
    # The lease goes away and comes back, faster than the first run can be stopped.
    await a.node.store.write(lambda tx: tx.merge(written_by_z(step, 1, owner="z")), remote=True)
    await a.node.store.write(lambda tx: tx.merge(written_by_z(step, 2, owner="a")), remote=True)
    await world.until(lambda: len(a.jobs) == 2, limit_s=0.5)
    assert a.executor.running_now == 2

    view = await a.wait(task_id)
    assert (view["status"], view["resultPayload"]) == ("SUCCESS", a.jobs[1].fence)
    assert await a.actions(task_id) == ["aborted"]
    assert a.node.runtime.running() == {}


async def test_an_older_word_of_a_step_told_after_its_claim_does_not_stop_its_run(world, autojump_clock):
    a = world.host("a")
    await world.up()
    task_id = await a.submit("sleep", input="2")
    await world.until(lambda: a.jobs)
    claimed = await a.step(task_id)
    before = msgspec.structs.replace(claimed, lease_epoch=0, hlc=claimed.hlc - 1, seq=1)
    a.node.runtime._on_commit(Commit((), (Change(None, before, True),), True))

    assert (await a.wait(task_id))["status"] == "SUCCESS"
    assert len(a.jobs) == 1


async def test_a_stopping_node_takes_nothing_over_and_accepts_nothing(world, autojump_clock):
    a, b = world.host("a"), world.host("b", agents={"special": special})
    await world.up()
    await b.submit("sleep", input="4")
    await world.until(lambda: b.jobs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.stop)
        await trio.sleep(0.1)
        task_id = await a.submit("special")
        await trio.sleep(3)
        assert (await a.step(task_id)).text("owner") == "a"
    assert [job.agent for job in b.jobs] == ["sleep"]
    await b.start()
    assert (await a.wait(task_id))["status"] == "SUCCESS"


# --- cuts ---


async def test_the_same_submit_on_both_sides_of_a_cut_is_one_task(world, autojump_clock):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()
    world.network.cut("a", "bc")
    crossed = world.network.crossed("a", "bc")

    args = {"input": "same", "idempotencyKey": "order-7"}
    ids = {await a.submit(**args), await b.submit(**args)}
    others = [await host.submit(input=f"own {host.name}") for host in (a, b, c)]
    assert len(ids) == 1
    task_id = ids.pop()
    await a.wait(task_id)
    await b.wait(task_id)
    await world.until(lambda: a.sees("b") == b.sees("a") == "DEAD")
    assert world.network.crossed("a", "bc") == crossed

    world.network.heal()
    await world.until(world.agree)
    for host in (a, b, c):
        listed = await host.admin("tasks")
        assert sorted(task["taskId"] for task in listed) == sorted([task_id, *others])
        assert all(task["status"] == "SUCCESS" for task in listed)
    # Both sides had to run it; one result is the step's, the other stays visible.
    conflicts = await c.admin("lease-conflicts", taskId=task_id)
    assert [conflict["action"] for conflict in conflicts] == ["superseded"]
    winner = await owner_of(task_id, c)
    assert conflicts[0]["details"]["winner"] == winner.name
    assert conflicts[0]["details"]["decidedBy"] in ("leaseEpoch", "leaseHlc", "hlc", "node")
    for host in (a, b, c):
        told = (await host.admin("explain", taskId=task_id))["steps"][0]
        assert sorted((run["outcome"], run["accepted"]) for run in told["runs"]) == [
            ("SUCCESS", True),
            ("superseded", False),
        ]
        assert [run["node"] for run in told["runs"] if run["accepted"]] == [winner.name]
        (tie,) = told["ties"]
        assert (tie["winner"], tie["decidedBy"]) == (winner.name, conflicts[0]["details"]["decidedBy"])
        assert told["reasons"] == []
    await trio.sleep(30)
    assert attempts(world, task_id).total() == 2  # finished work never runs again by itself


async def test_one_key_for_two_different_tasks_keeps_both_and_flags_the_later(world, autojump_clock):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()
    world.network.cut("a", "bc")
    first = await a.submit(input="one", idempotencyKey="k")
    await trio.sleep(1)
    second = await b.submit(input="two", idempotencyKey="k")
    await trio.sleep(10)
    world.network.heal()
    await world.until(world.agree)

    for host in (a, b, c):
        for task_id in (first, second):
            told = await host.admin("explain", taskId=task_id)
            assert told["keyConflicts"] == [
                {"taskId": first, "holdsKey": True},
                {"taskId": second, "holdsKey": False},
            ]
            assert told["status"] == "SUCCESS"


async def test_a_replay_on_both_sides_of_a_cut_is_one_generation(world, autojump_clock):
    calls = Counter()

    async def flaky(job: Job) -> Outcome:
        calls[job.fence] += 1
        if mended:
            return Outcome(kind="success", result=b"mended")
        return Outcome(kind="rejected", error="not yet")

    mended = False
    a, b, c = (world.host(name, agents={"flaky": flaky}) for name in "abc")
    await world.up()
    task_id = await a.submit("flaky")
    assert (await b.wait(task_id))["status"] == "DEAD_LETTER"
    await world.until(world.agree)
    world.network.cut("a", "bc")
    mended = True
    assert (await a.admin("replay", taskId=task_id))["generation"] == 1
    assert (await b.admin("replay", taskId=task_id))["generation"] == 1
    await a.wait(task_id)
    await b.wait(task_id)
    await trio.sleep(10)
    world.network.heal()
    await world.until(world.agree)

    for host in (a, b, c):
        step = await host.step(task_id)
        assert (step.generation, step.text("status")) == (1, "SUCCESS")
    await trio.sleep(30)
    assert (await c.step(task_id)).generation == 1
    assert calls.total() == 3


async def test_work_on_the_wrong_side_of_a_cut_runs_on_both_and_has_one_result_after_the_heal(world, autojump_clock):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()
    task_id = await a.submit("sleep", input="15")
    await world.until(lambda: a.jobs)
    await world.until(world.agree)
    world.network.cut("a", "bc")
    await a.wait(task_id)
    assert b.jobs or c.jobs
    world.network.heal()

    await world.until(world.agree)
    view = await a.wait(task_id)
    assert view["status"] == "SUCCESS"
    # The side that finished first has the result: finished work outranks an unfinished higher epoch.
    assert view["steps"][0]["owner"] == "a"
    assert [node for node, _ in accepted(world, task_id)] == ["a"]


async def test_a_rejoining_owner_stops_its_run_when_the_other_side_took_the_step(world, autojump_clock):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()
    task_id = await a.submit("sleep", input="40")
    await world.until(lambda: a.jobs)
    await world.until(world.agree)
    world.network.cut("a", "bc")
    await world.until(lambda: b.jobs or c.jobs)
    world.network.heal()

    await world.until(lambda: a.executor.running_now == 0, limit_s=30)
    await b.wait(task_id, timeout_s=200)
    await world.until(world.agree)
    assert await a.actions(task_id) == ["taken_over", "aborted"]
    assert len(accepted(world, task_id)) == 1


# --- cancel ---


async def test_cancel_at_a_node_that_is_not_the_owner_ends_the_run(world, autojump_clock):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()
    task_id = await a.submit("sleep", input="50")
    await world.until(lambda: a.jobs)
    await world.until(lambda: c.knows(task_id))

    answer = await c.admin("cancel", taskId=task_id, reason="wrong input")
    assert (answer["cancelled"], answer["state"]) == (True, "cancelled")
    assert a.executor.running_now == 0
    view = await b.wait(task_id)
    assert (view["status"], view["lastError"]) == ("CANCELLED", "cancelled: wrong input")
    told = (await b.admin("explain", taskId=task_id))["steps"][0]
    assert "a cancelled it (hard): wrong input" in [line["text"] for line in told["timeline"]]


async def test_a_soft_cancel_lets_a_run_end_and_cancels_what_waits(world, autojump_clock):
    a, b = world.host("a"), world.host("b")
    await world.up()
    task_id = await a.workflow(
        {"id": "first", "agent": "sleep", "input": "10"},
        {"id": "second", "agent": "echo", "dependsOn": ["first"]},
    )
    await world.until(lambda: a.jobs)
    await world.until(lambda: b.knows(task_id))
    answer = await b.admin("cancel", taskId=task_id, mode="soft")
    assert answer["state"] == "requested"
    assert "a running attempt may finish" in answer["message"]

    await a.wait(task_id)
    assert [await a.status(task_id, name) for name in ("first", "second")] == ["SUCCESS", "CANCELLED"]


async def test_a_cancel_that_cannot_reach_the_owner_names_it_and_holds(world, autojump_clock):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()
    pinned = await a.submit("sleep", input="50", node="a")
    movable = await a.submit("sleep", input="50")
    await world.until(lambda: len(a.jobs) == 2)
    await world.until(world.agree)
    world.network.cut("a", "bc")
    await world.until(lambda: b.sees("a") == "SUSPECT")
    answers = {}

    async def cancel(task_id: str) -> None:
        answers[task_id] = await b.admin("cancel", taskId=task_id)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel, pinned)
        nursery.start_soon(cancel, movable)
    assert answers[pinned]["state"] == "requested"
    assert "not reachable now: a" in answers[pinned]["message"]

    # Who takes the other one over obeys the flag instead of running it.
    await b.wait(movable)
    assert await b.status(movable) == "CANCELLED"
    assert not b.jobs + c.jobs
    assert a.executor.running_now == 2
    world.network.heal()
    await world.until(lambda: a.executor.running_now == 0, limit_s=30)
    await world.until(world.agree)
    assert [await a.status(task_id) for task_id in (pinned, movable)] == ["CANCELLED"] * 2


async def test_taking_over_a_cancelled_task_cancels_also_what_can_never_run(world, autojump_clock):
    a, b = world.host("a"), world.host("b")
    await world.up()
    task_id = await a.workflow(
        {"id": "first", "agent": "fail", "maxAttempts": 1},
        {"id": "second", "agent": "echo", "dependsOn": ["first"]},
    )
    await a.wait(task_id)
    await world.until(world.agree)
    await a.crash()
    answer = await b.admin("cancel", taskId=task_id)
    assert answer["state"] == "requested"

    await world.until(lambda: _is_second_cancelled(b, task_id), limit_s=30)


async def _is_second_cancelled(host: Host, task_id: str) -> bool:
    return await host.status(task_id, "second") == "CANCELLED"


# --- cluster epoch ---


async def test_a_higher_cluster_epoch_requeues_running_work_uncounted(world, autojump_clock):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()
    task_id = await a.submit("sleep", input="5")
    await world.until(lambda: a.jobs)
    await world.until(lambda: c.knows(task_id))
    bumped = await c.admin("cluster-epoch-bump", reason="drill")
    assert (bumped["previousEpoch"], bumped["currentEpoch"]) == (1, 2)

    view = await b.wait(task_id)
    step = view["steps"][0]
    assert (view["status"], step["attempt"], step["clusterEpoch"]) == ("SUCCESS", 1, 2)
    assert await b.actions(task_id) == ["requeued"]
    assert attempts(world, task_id).total() == 2
    assert (await a.admin("cluster-state"))["reason"] == "drill"


# --- replication ---


async def test_replicas_are_confirmed_by_nodes_that_have_the_task_durably(world, autojump_clock):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()

    answer = await a.admin("submit", agent="echo", input="x", replicas=2)
    assert (answer["replicated"], answer["replicasWanted"]) == (2, 2)
    assert await b.knows(answer["taskId"])
    assert await c.knows(answer["taskId"])

    world.network.cut("c", "ab")
    answer = await a.admin("submit", agent="echo", input="y", replicas=2, replicasTimeoutMs=2000)
    assert answer["replicated"] == 1
    assert "1 of 2 replicas so far" in answer["message"]
    assert (await a.wait(answer["taskId"]))["status"] == "SUCCESS"


async def test_a_forged_bundle_is_refused_everywhere(world, autojump_clock):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()
    task_id = await a.submit("sleep", input="20")
    await world.until(lambda: a.jobs)
    await world.until(world.agree)
    step = await b.step(task_id)
    seq = step.seq + 1
    values = {**step.values, "status": "SUCCESS"}
    row = msgspec.structs.replace(step, rank=3, hlc=step.hlc + 1, seq=seq, values=values)

    # b holds the gossip key and a good certificate, but not a's key: rows of a in its name do not verify.
    own = msgspec.structs.replace(row, origin=b.node.store.origin)
    signed_by_b = make_bundle(b.node.spec.identity, [own], seq, seq)
    fields = msgspec.msgpack.decode(signed_by_b)
    fields[0] = msgspec.msgpack.decode(msgspec.msgpack.encode(a.node.spec.identity.certificate))
    b.node.loop.publish(TOPIC_BUNDLE, msgspec.msgpack.encode(fields), b"forged")

    await world.until(lambda: a.node.bundles_dropped and c.node.bundles_dropped)
    assert [await host.status(task_id) for host in (a, b, c)] == ["RUNNING"] * 3


async def test_verification_repairs_a_row_that_was_deleted_behind_the_stores_back(world, autojump_clock):
    a, b = world.host("a"), world.host("b")
    await world.up()
    ids = [await a.submit(input=str(number)) for number in range(20)]
    for task_id in ids:
        await b.wait(task_id)
    await world.until(world.agree)
    step = await b.step(ids[7])
    b.node.store._writer.ledger.connection.execute("DELETE FROM steps WHERE key = ?", (step.key,))
    assert await b.step(ids[7]) is None
    assert not await world.agree()

    answer = await b.admin("maintenance")

    assert answer["verified"] == [{"nodeId": "a", "compared": True, "differingRanges": 1, "repairedRows": 1}]
    assert await b.step(ids[7]) == step
    assert await world.agree()


async def test_a_pull_that_breaks_in_the_middle_goes_on_without_loss(world, autojump_clock):
    a, b = world.host("a"), world.host("b")
    await a.start()
    async with trio.open_nursery() as nursery:
        for number in range(700):
            nursery.start_soon(lambda number=number: a.submit(input="x" * 2000 + str(number)))
    await world.until(lambda: len(a.results) == 700, limit_s=300)
    world.network.breaks_after["a", "b"] = 1_500_000
    await b.start()

    await world.until(world.agree)
    assert b.node.puller.failures_total == 1
    assert len(await b.rows("tasks")) == 700


async def test_a_peer_that_answers_nonsense_does_not_end_a_node(world, autojump_clock):
    a, b = world.host("a"), world.host("b")
    await world.up()
    verbs = dict(b.node.server._verbs)

    async def nonsense(peer, body, send):
        return b"\xc1"

    b.node.server._verbs = {**verbs, **{name: Verb(nonsense) for name in ("pull", "ask", "offer", "verify", "sync")}}
    task_id = await b.submit("sleep", input="2")
    await trio.sleep(5)
    assert (await a.admin("submit", agent="echo", replicas=1, replicasTimeoutMs=1000))["replicated"] == 0
    answer = await a.admin("maintenance")
    assert answer["verified"][0]["compared"] is False
    assert a.is_up

    b.node.server._verbs = verbs
    await a.wait(task_id)
    await world.until(world.agree)


# --- user code that misbehaves ---


async def test_whatever_a_handler_writes_or_raises_the_node_lives_on(world, autojump_clock):
    async def noisy(job: Job) -> Outcome:
        return Outcome(kind="rejected", error="\udc80" + "\U0001f600" * 4000, log="\x1b" * 2048 + "ü" * 2048)

    async def broken(job: Job) -> Outcome:
        raise RuntimeError("the executor itself broke")

    a = world.host("a", agents={"noisy": noisy, "broken": broken}, max_attempts=1)
    await world.up()

    for agent in ("noisy", "broken"):
        task_id = await a.submit(agent)
        assert (await a.wait(task_id))["status"] == "DEAD_LETTER"
        assert await a.admin("logs", taskId=task_id)
    assert a.is_up


async def test_a_failing_step_is_retried_with_its_backoff_and_then_a_dead_letter(world, autojump_clock):
    a, b = world.host("a", max_attempts=3), world.host("b", max_attempts=3)
    await world.up()
    task_id = await a.submit("fail")
    view = await b.wait(task_id)

    assert (view["status"], view["lastError"], view["steps"][0]["attempt"]) == ("DEAD_LETTER", "told to fail", 3)
    lines = await b.admin("logs", taskId=task_id)
    assert [line["attempt"] for line in lines if line["action"] == "failed"] == [1, 2, 3]
    assert [line["details"]["log"] for line in lines if line["action"] == "logged"] == ["about to fail"] * 3
    told = (await b.admin("explain", taskId=task_id))["steps"][0]
    assert told["summary"].startswith("It is a dead letter: told to fail.")


async def test_a_full_store_queue_at_the_end_of_a_run_costs_neither_the_result_nor_the_node(world, autojump_clock):
    a = world.host("a")
    await world.up()
    await a.submit("sleep", input="1")
    await world.until(lambda: a.jobs)
    write, refusals = a.node.store.write, []

    async def full(fn, **options):
        if len(refusals) < 3:
            refusals.append(fn)
            raise LimitError("4096 requests wait for this node's disk: try again in a moment")
        return await write(fn, **options)

    a.node.store.write = full
    await world.until(lambda: a.results)
    assert len(refusals) == 3
    assert a.is_up
