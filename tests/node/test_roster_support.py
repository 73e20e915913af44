"""Steps that wait on a partition, on whole nodes: they run where a majority of their roster is, and nowhere else."""

from __future__ import annotations

import itertools

import msgspec
import pytest
import trio

from mesh.errors import ConfigError, LimitError
from node.env import Job, Outcome, PeerIdentity
from node.work.definition import Definition, check_roster
from node.work.roster_support import SupportRequest, VoteAnswer, VoteRequest
from tests.node.simulated_env import Host, simulated_world
from tests.node.work_desk import step


@pytest.fixture
async def world(tmp_path, autojump_clock):
    async with simulated_world(tmp_path) as world:
        yield world


class Spans:
    """A handler that takes its time, and when each of its runs began and ended."""

    def __init__(self, length_s: float) -> None:
        self.length_s = length_s
        self.seen: list[tuple[float, float]] = []

    async def __call__(self, job: Job) -> Outcome:
        began = trio.current_time()
        try:
            await trio.sleep(self.length_s)
        finally:
            self.seen.append((began, trio.current_time()))
        return Outcome(kind="success", result=b"done")

    def overlap(self) -> bool:
        spans = sorted(self.seen)
        return any(later[0] < earlier[1] for earlier, later in itertools.pairwise(spans))


async def summary(host: Host, task_id: str) -> str:
    return str((await host.admin("explain", taskId=task_id))["steps"][0]["summary"])


async def test_a_waiting_step_keeps_its_roster_and_runs_once(world):
    a, b, _ = (world.host(name) for name in "abc")
    await world.up()

    view = await b.wait(await a.submit(input="x", onPartition="wait"))
    told = view["steps"][0]
    assert (view["status"], told["onPartition"], told["roster"], told["attempt"]) == ("SUCCESS", "wait", [*"abc"], 1)
    plain = await a.wait(await a.submit(input="y"))
    assert (plain["steps"][0]["onPartition"], plain["steps"][0]["roster"]) == ("takeover", [])


async def test_fewer_than_three_members_are_no_roster(world):
    a, _ = (world.host(name) for name in "ab")
    await world.up()

    with pytest.raises(ConfigError, match=r"knows 2 member\(s\) \(a, b\).*onPartition=takeover"):
        await a.submit(onPartition="wait")
    assert await a.admin("tasks") == []


def test_more_than_a_hundred_members_are_no_roster_either():
    waiting = Definition((step("only", waits=True),))
    with pytest.raises(LimitError, match="the limit is 100"):
        check_roster(waiting, [f"n{number}" for number in range(101)])
    assert check_roster(Definition((step("only"),)), ["alone"]) == []


async def test_a_cut_off_owner_stops_its_run_before_the_majority_begins_another(world):
    job = Spans(8.0)
    a, b, c = (world.host(name, agents={"job": job}) for name in "abc")
    await world.up()
    task_id = await a.submit("job", onPartition="wait", node=None)
    await world.until(lambda: a.jobs)
    await world.until(lambda: b.knows(task_id))

    world.network.cut("a", "bc")
    view = await b.wait(task_id)

    assert view["status"] == "SUCCESS"
    assert not a.node.runtime._runs
    assert len(job.seen) == 2
    assert not job.overlap()
    assert "needs the support of 2 of the 3 members of its roster (a, b, c)" in await summary(a, task_id)
    assert "has had that of a" in await summary(a, task_id)
    world.network.heal()
    await world.until(world.agree)
    assert len(job.seen) == 2
    assert len([row for host in (a, b, c) for row in host.results]) == 1


async def test_a_cut_off_owner_runs_other_work_while_a_waiting_one_is_held(world):
    job = Spans(8.0)
    a, _, _ = (world.host(name, agents={"job": job}, slots=1) for name in "abc")
    await world.up()
    await a.submit("job", onPartition="wait", node="a")
    await world.until(lambda: a.jobs)

    world.network.cut("a", "bc")
    view = await a.wait(await a.submit(input="alone"))
    assert view["status"] == "SUCCESS"


async def test_a_result_that_lacks_support_is_kept_until_support_returns(world):
    job = Spans(3.0)
    a, b, _ = (world.host(name, agents={"job": job}) for name in "abc")
    await world.up()
    task_id = await a.submit("job", onPartition="wait", node="a")
    await world.until(lambda: a.jobs)
    world.network.cut("a", "bc")
    a.pause()
    await trio.sleep(4)
    a.resume()
    await world.until(lambda: a.node.runtime._held, limit_s=10)
    assert await a.status(task_id) == "RUNNING"

    world.network.heal()
    assert (await b.wait(task_id))["status"] == "SUCCESS"


async def test_work_that_waits_on_the_smaller_side_runs_after_the_heal(world):
    a, b, _ = (world.host(name) for name in "abc")
    await world.up()
    world.network.cut("a", "bc")
    task_id = await a.submit(input="x", onPartition="wait")
    await trio.sleep(6)

    assert await a.status(task_id) == "PENDING"
    assert not a.jobs
    assert "It runs in one place only (on_partition=wait)" in await summary(a, task_id)
    world.network.heal()
    assert (await b.wait(task_id))["status"] == "SUCCESS"


async def test_steps_of_one_workflow_may_ask_for_different_policies(world):
    a, b, _ = (world.host(name) for name in "abc")
    await world.up()

    task_id = await a.workflow(
        {"id": "first", "agent": "echo", "input": "1"},
        {"id": "second", "agent": "echo", "input": "2", "dependsOn": ["first"], "onPartition": "wait"},
    )
    view = await b.wait(task_id)
    assert {each["name"]: each["onPartition"] for each in view["steps"]} == {"first": "takeover", "second": "wait"}
    assert view["status"] == "SUCCESS"
    with pytest.raises(ConfigError, match="onPartition 'maybe' is not one of takeover, wait"):
        await a.workflow({"id": "only", "agent": "echo", "onPartition": "maybe"})


async def test_nobody_is_asked_for_support_while_no_step_needs_it(world):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()
    await b.wait(await a.submit(input="x", onPartition="wait"))
    await trio.sleep(1)
    before = [host.node.server.calls["support"] for host in (a, b, c)]
    await trio.sleep(10)
    assert [host.node.server.calls["support"] for host in (a, b, c)] == before


async def vote(voter: Host, taker: str, task_id: str, epoch: int) -> VoteAnswer:
    row = await voter.step(task_id)
    request = VoteRequest(b"process-of-" + taker.encode(), 2500, [("default", row.key, row.generation, epoch)])
    answer = await voter.node.support.handle_vote(PeerIdentity("node", taker), msgspec.msgpack.encode(request))
    return msgspec.msgpack.decode(answer, type=list[VoteAnswer])[0]


async def test_a_voter_that_started_anew_remembers_its_vote(world):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()
    task_id = await a.submit("sleep", input="100", onPartition="wait", node="a")
    await world.until(lambda: a.jobs)
    await world.until(lambda: c.status(task_id))
    assert not (await vote(c, "b", task_id, 7)).granted  # the owner lives

    await b.crash()
    await a.crash()
    await world.until(lambda: c.sees("a") == "DEAD")
    await trio.sleep(5)
    assert await vote(c, "b", task_id, 7) == VoteAnswer(True, 7)
    await c.crash()
    await c.start()
    await world.until(lambda: c.sees("a") == "DEAD")
    await trio.sleep(5)

    assert await vote(c, "x", task_id, 7) == VoteAnswer(False, 7, True)
    await trio.sleep(5)
    assert await vote(c, "b", task_id, 7) == VoteAnswer(True, 7)
    await trio.sleep(5)
    assert await vote(c, "x", task_id, 8) == VoteAnswer(True, 8)


async def test_too_many_steps_in_one_request_are_refused(world):
    a = world.host("a")
    await world.up()
    body = msgspec.msgpack.encode(SupportRequest(b"p", 2500, [("default", "s")] * 1025))
    with pytest.raises(LimitError, match="limit is 1024"):
        await a.node.support.handle_support(PeerIdentity("node", "b"), body)


async def test_more_replicas_than_can_be_reached_are_answered_in_time(world):
    a, b, _ = (world.host(name) for name in "abc")
    await world.up()
    began = trio.current_time()
    answer = await a.admin(
        "submit-workflow",
        definition={"steps": [{"id": "only", "agent": "echo"}]},
        replicas=9,
        replicasTimeoutMs=3000,
    )
    assert trio.current_time() - began <= 3.5
    assert answer["message"].startswith("accepted, durable at this node, 2 of 9 replicas so far")
    assert (await b.wait(answer["taskId"]))["status"] == "SUCCESS"
