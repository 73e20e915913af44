"""Interleavings that once lost, doubled or wedged a step, each played against one store and one runtime."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing

from mesh.errors import LimitError, StoreError
from mesh.gate import Gate
from mesh.ids import Origin, make_life
from mesh.placement import Offer
from mesh.rows import Row
from node.env import AgentInfo, Env, Job, Outcome
from node.storage.store import Store
from node.storage.transaction import Transaction
from node.work import transitions
from node.work.definition import Definition, StepDefinition
from node.work.history import Action
from node.work.payloads import missing_payloads
from node.work.retries import RetryPolicy
from node.work.roster_support import RosterSupport
from node.work.runtime import RunLimits, Runtime
from node.work.tables import WORK_TABLES
from node.work.work_queue import WorkQueue
from tests.node.conftest import InlineThread, TestDisk, TrioClock

LIFE = make_life(1, 5)
POLICY = RetryPolicy(max_attempts=3, base_backoff_ms=1000, max_backoff_ms=1000)
Handler = Callable[[Job], Awaitable[Outcome]]


async def echo(job: Job) -> Outcome:
    return Outcome(kind="success", result=job.payload)


async def nap(job: Job) -> Outcome:
    await trio.sleep(float(job.payload))
    return Outcome(kind="success")


async def fail(job: Job) -> Outcome:
    return Outcome(kind="failed", error="told to fail")


@dataclass
class FakeExecutor:
    """Handlers are coroutines of the test."""

    handlers: dict[str, Handler]
    concurrency: dict[str, int] = field(default_factory=dict)
    started: list[Job] = field(default_factory=list)
    most: int = 0
    running_now: int = 0

    def agents(self) -> Mapping[str, AgentInfo]:
        return {
            name: AgentInfo(name=name, kind="builtin", concurrency=self.concurrency.get(name)) for name in self.handlers
        }

    async def run(self, job: Job) -> Outcome:
        self.started.append(job)
        self.running_now += 1
        self.most = max(self.most, self.running_now)
        try:
            return await self.handlers[job.agent](job)
        finally:
            self.running_now -= 1


@dataclass
class Desk:
    """One node's store and runtime, without a mesh."""

    store: Store
    runtime: Runtime
    queue: WorkQueue
    gate: Gate
    executor: FakeExecutor
    ids: int = 0

    async def submit(self, *steps: StepDefinition) -> str:
        self.ids += 1
        key = f"key-{self.ids}"

        def write(tx: Transaction) -> str:
            definition = Definition(steps)
            return transitions.submit(
                tx, me="node-a", namespace="default", key=key, definition=definition, trace_id="0" * 32
            ).task_id

        return await self.store.write(write)

    async def one(self, agent: str = "echo", payload: bytes = b"", **more: Any) -> Row:
        """Submit a task of one step; returns the step."""
        task_id = await self.submit(step("only", agent, payload=payload, **more))
        return (await self.steps(task_id))[0]

    async def steps(self, task_id: str) -> list[Row]:
        return await self.store.read(lambda reader: transitions.task_steps(reader, "default", task_id))

    async def row(self, key: str) -> Row:
        found = await self.store.read(lambda reader: reader.get("steps", "default", key))
        assert found is not None
        return found

    async def status(self, key: str) -> str:
        return (await self.row(key)).text("status")

    async def queued(self) -> list[str]:
        return [row[0] for row in await self.store.read(lambda reader: reader.sql("SELECT step_id FROM queue"))]

    async def history(self, action: Action) -> list[Row]:
        return await self.store.read(lambda reader: reader.select("history", "action = ?", (action.value,)))

    async def merge(self, row: Row) -> str:
        return await self.store.write(lambda tx: tx.merge(row), remote=True)

    async def until(self, key: str, *statuses: str) -> Row:
        with trio.fail_after(60):
            while (await self.status(key)) not in statuses:  # noqa: ASYNC110 -- the store's own events are under test
                await trio.sleep(0.01)
        return await self.row(key)

    async def claim(self, key: str, life: int = LIFE) -> transitions.Claimed | None:
        """Claim as a slot would, without running it."""

        def write(tx: Transaction) -> transitions.Claimed | None:
            entry = transitions.Queued("default", key, "echo")
            return transitions.claim(tx, entry, me="node-a", life=life, timeout_s=lambda _agent, _ms: 60.0)

        return await self.store.write(write)


def step(name: str, agent: str = "echo", **more: Any) -> StepDefinition:
    return StepDefinition(name=name, agent=agent, labels=more.pop("labels", {}), **more)


def foreign(row: Row, node: str = "node-b", seq: int = 1, ahead_ms: int = 0, **changes: Any) -> Row:
    """A version of a row as another node would have written it after seeing it."""
    values = {**row.values, **changes.pop("values", {})}
    hlc = row.hlc + 1 + (ahead_ms << 16)
    return msgspec.structs.replace(row, node=node, origin=Origin(node, 7), seq=seq, hlc=hlc, values=values, **changes)


@asynccontextmanager
async def open_desk(
    root: Path, *, handlers: dict[str, Handler] | None = None, has_peers: bool = False, slots: int = 2, **executor: Any
) -> AsyncIterator[Desk]:
    fake = FakeExecutor(handlers or {"echo": echo, "nap": nap, "fail": fail}, **executor)
    env = Env(
        clock=TrioClock(),
        rng=random.Random(3),
        entropy=random.Random(4).randbytes,
        net=cast(Any, None),
        disk=TestDisk(root),
        writer_thread=InlineThread(),
        reader_thread=InlineThread(),
        executor=cast(Any, fake),
    )
    store = Store(env, WORK_TABLES, node_id="node-a", path=root / "relaymesh.db")
    gate = Gate(dead_time_s=3.0, has_peers=has_peers, now=env.clock.monotonic())
    queue = WorkQueue("node-a", lambda: Offer(node="node-a", abilities=frozenset(fake.agents())))
    limits = RunLimits(slots=slots, timeout_s=60.0, retry=POLICY)
    support = RosterSupport(
        env,
        store,
        cast(Any, None),
        cast(Any, None),
        me="node-a",
        self_fence_s=3.0,
        queued_max=4,
        may_support=lambda: True,
    )
    runtime = Runtime(env, store, gate, queue, support, me="node-a", life=LIFE, limits=limits)
    await store.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        yield Desk(store, runtime, queue, gate, fake)
        nursery.cancel_scope.cancel()
    await store.close()


@asynccontextmanager
async def running(desk: Desk) -> AsyncIterator[None]:
    """The runtime's slots, and the looks at the gate that the gossip loop would make."""

    async def look() -> None:
        while True:
            desk.runtime.gate_is_open()
            await trio.sleep(0.5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await nursery.start(desk.runtime.run)
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture
async def desk(tmp_path, autojump_clock):
    async with open_desk(tmp_path) as desk:
        yield desk


# --- claims ---


async def test_a_step_claimed_in_the_commit_that_brought_it_runs(desk):
    tasks = []

    async def submit_and_wake():
        # The slot's claim and the submit enter the same batch, in either order.
        async with trio.open_nursery() as both:
            both.start_soon(submit)
            desk.runtime.wake(2)

    async def submit():
        tasks.append(await desk.submit(step("only", "nap", payload=b"0.01")))

    async with running(desk):
        for _ in range(20):
            await trio.testing.wait_all_tasks_blocked()
            await submit_and_wake()
        for task_id in tasks:
            await desk.until((await desk.steps(task_id))[0].key, "SUCCESS")
    assert await desk.history(Action.ABORTED) == []


async def test_a_step_whose_input_has_not_arrived_is_not_claimed_and_runs_when_it_comes(desk):
    # A hand-over's step row is small and comes by gossip; its input comes with a later pull.
    original = await desk.one(payload=b"x" * 2000)
    reference = original.text("input_ref")
    payload = await desk.store.read(lambda reader: reader.get("payloads", "default", reference))
    await desk.store.write(lambda tx: tx.execute("DELETE FROM payloads"))

    async with running(desk):
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert await desk.status(original.key) == "PENDING"
        assert await desk.queued() == [original.key]
        assert await desk.store.read(lambda reader: missing_payloads(reader, [original])) == {reference}
        echo = Offer(node="node-b", abilities=frozenset({"echo"}))
        offered = await desk.store.read(lambda tx: transitions.queued_for(tx, echo, now_ms=2**60, limit=9))
        assert offered == []  # a peer that asks for work would be no better off

        # Nobody asks again: a node whose peers lost the input with their disks stays as quiet as any other.
        commits = []
        desk.store.on_commit(commits.append)
        await trio.sleep(1.2)
        assert commits == []

        await desk.merge(foreign(payload, seq=1))
        await desk.until(original.key, "SUCCESS")


# --- what handlers say ---


@pytest.mark.parametrize(
    "text",
    ["\x1b" * 4096, "\U0001f600" * 1024, "\ud800" * 100, '"\\\n' * 1300],
    ids=["escapes", "emoji", "half-pairs", "quotes"],
)
async def test_whatever_a_handler_prints_or_raises_costs_its_attempt_only(desk, text):
    async def talk(job: Job) -> Outcome:
        return Outcome(kind="failed", error=text, log=text)

    desk.executor.handlers["echo"] = talk
    original = await desk.one(max_attempts=1)
    async with running(desk):
        ended = await desk.until(original.key, "DEAD_LETTER")

    assert ended.text("last_error")
    assert len(await desk.history(Action.LOGGED)) == 1


async def test_a_result_that_cannot_be_stored_dead_letters_its_step(desk):
    async def huge(job: Job) -> Outcome:
        return Outcome(kind="success", result=bytes(17 << 20))

    desk.executor.handlers["echo"] = huge
    original = await desk.one()
    async with running(desk):
        ended = await desk.until(original.key, "DEAD_LETTER")

    assert "cannot be stored" in ended.text("last_error")


# --- cluster epochs ---


async def bump(desk: Desk) -> None:
    await desk.store.write(lambda tx: transitions.bump_cluster_epoch(tx, reason="test", actor="olga"))


async def test_a_run_that_ends_as_the_cluster_epoch_rises_is_started_again(desk):
    original = await desk.one()
    claimed = await desk.claim(original.key)
    await bump(desk)

    finished = await desk.store.write(
        lambda tx: transitions.finish(
            tx,
            claimed.step,
            Outcome(kind="success", result=b"late"),
            me="node-a",
            policy=POLICY,
            rng=random.Random(1),
            reopen=False,
        )
    )

    assert not finished.accepted
    again = await desk.row(original.key)
    assert (again.text("status"), again.cluster_epoch, again.integer("attempt")) == ("PENDING", 2, 0)
    assert await desk.queued() == [original.key]


async def test_a_cancel_that_meets_a_higher_cluster_epoch_still_ends_the_step(desk):
    original = await desk.one()
    claimed = await desk.claim(original.key)
    await desk.store.write(
        lambda tx: transitions.request_cancel(tx, "default", original.text("task_id"), mode="hard", reason="enough")
    )
    await bump(desk)

    await desk.store.write(lambda tx: transitions.cancel_run(tx, claimed.step, me="node-a"))

    assert await desk.status(original.key) == "CANCELLED"


# --- commits of unknown outcome ---


@pytest.mark.parametrize(("kind", "status"), [("success", "SUCCESS"), ("failed", "RETRYING")])
async def test_repeating_a_commit_that_had_happened_tells_of_no_conflict(desk, kind, status):
    original = await desk.one()
    claimed = await desk.claim(original.key)

    def end(tx: Transaction) -> transitions.Finished:
        outcome = Outcome(kind=kind, result=b"done", error="no")
        return transitions.finish(
            tx, claimed.step, outcome, me="node-a", policy=POLICY, rng=random.Random(1), reopen=True
        )

    first, second = await desk.store.write(end), await desk.store.write(end)

    assert (first.accepted, second.accepted) == (True, True)
    assert (await desk.row(original.key)).text("status") == status
    assert await desk.history(Action.SUPERSEDED) == []


# --- cancel ---


async def test_a_taken_over_step_of_a_cancelled_task_ends_though_it_could_never_run(desk):
    task_id = await desk.submit(step("first"), step("second", depends_on=("first",)))
    first, second = await desk.steps(task_id)
    for seq, row in enumerate((first, second), start=1):
        moved = foreign(row, seq=seq, lease_epoch=1, lease_hlc=row.hlc + 1, values={"owner": "node-b"})
        assert await desk.merge(moved) == "applied"
    await desk.store.write(lambda tx: transitions.request_cancel(tx, "default", task_id, mode="hard", reason="enough"))

    def take(tx: Transaction) -> None:
        for row in transitions.task_steps(tx, "default", task_id):
            assert transitions.take_over(tx, row, me="node-a", why="test", current_life=lambda _node: None)

    await desk.store.write(take)

    assert [row.text("status") for row in await desk.steps(task_id)] == ["CANCELLED", "CANCELLED"]


async def test_a_cancel_committed_between_claim_and_start_stops_the_run(desk, autojump_clock):
    async with running(desk):
        # The slot's claim and this cancel are mostly requests of one commit, in either order.
        for _ in range(10):
            original = await desk.one("nap", b"50")
            await desk.store.write(partial(cancel_if_running, step=original))
            await desk.store.write(partial(cancel_if_running, step=original))
            began = trio.current_time()
            await desk.until(original.key, "CANCELLED", "SUCCESS")
            assert await desk.status(original.key) == "CANCELLED"
            assert trio.current_time() - began < 5


def cancel_if_running(tx: Transaction, *, step: Row) -> None:
    current = tx.get("steps", step.namespace, step.key)
    if current is not None and current.text("status") == "RUNNING":
        transitions.request_cancel(tx, step.namespace, step.text("task_id"), mode="hard", reason="enough")


async def test_a_run_stopped_without_need_leaves_its_step_waiting(desk):
    original = await desk.one()
    claimed = await desk.claim(original.key)
    await desk.store.write(lambda tx: transitions.abort(tx, claimed.step, me="node-a"))

    assert await desk.status(original.key) == "PENDING"
    assert await desk.queued() == [original.key]


async def slow_to_end(job: Job) -> Outcome:
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(1)  # killing a process takes its time


async def cancel(desk: Desk, step: Row) -> None:
    await desk.store.write(
        lambda tx: transitions.request_cancel(tx, "default", step.text("task_id"), mode="hard", reason="enough")
    )


async def test_a_run_is_told_of_in_the_commit_that_takes_its_lease_away(desk, autojump_clock):
    desk.executor.handlers["slow"] = slow_to_end
    original = await desk.one("slow")
    async with running(desk):
        claimed = await desk.until(original.key, "RUNNING")
        moved = foreign(claimed, lease_epoch=2, lease_hlc=claimed.hlc + 1, values={"owner": "node-b"})
        assert await desk.merge(moved) == "applied"
        assert desk.executor.running_now == 1
        (told,) = await desk.history(Action.ABORTED)
        await trio.sleep(2)

    assert told.text("fence") == desk.executor.started[0].fence
    assert await desk.history(Action.ABORTED) == [told]


@pytest.mark.parametrize("stop", [cancel, lambda desk, _step: bump(desk)], ids=["cancel", "epoch"])
async def test_a_run_that_was_being_stopped_as_its_lease_moved_is_told_of(desk, stop, autojump_clock):
    desk.executor.handlers["slow"] = slow_to_end
    original = await desk.one("slow")
    async with running(desk):
        claimed = await desk.until(original.key, "RUNNING")
        await stop(desk, original)
        moved = foreign(claimed, cluster_epoch=9, lease_epoch=2, lease_hlc=claimed.hlc + 1, values={"owner": "node-b"})
        assert await desk.merge(moved) == "applied"
        await trio.sleep(2)

    (told,) = await desk.history(Action.ABORTED)
    assert told.text("fence") == desk.executor.started[0].fence
    assert (await desk.row(original.key)).text("owner") == "node-b"


# --- replays ---


async def test_a_result_that_a_replay_of_another_one_displaced_is_superseded(desk, autojump_clock):
    original = await desk.one()
    async with running(desk):
        ended = await desk.until(original.key, "SUCCESS")
    fresh = {"status": "PENDING", "owner": "node-b"}
    elsewhere = foreign(ended, rank=0, generation=1, lease_epoch=1, lease_hlc=ended.hlc, values=fresh)
    assert await desk.merge(elsewhere) == "applied"

    (told,) = await desk.history(Action.SUPERSEDED)
    assert told.text("fence") == desk.executor.started[0].fence
    assert "generation" in told.text("detail")


async def test_a_result_that_was_itself_replayed_is_not_superseded(desk, autojump_clock):
    original = await desk.one()
    async with running(desk):
        ended = await desk.until(original.key, "SUCCESS")
        await desk.store.write(
            lambda tx: transitions.replay(tx, "default", ended.text("task_id"), me="node-a", step_name="only")
        )
        await desk.until(original.key, "SUCCESS")
    assert len(await desk.history(Action.REPLAYED)) == 1
    assert await desk.history(Action.SUPERSEDED) == []


# --- retries ---


async def test_a_retry_that_is_due_before_it_was_looked_at_is_woken(desk, autojump_clock):
    original = await desk.one("fail", max_attempts=2)
    async with running(desk):
        await desk.until(original.key, "RETRYING")
        await desk.store.write(lambda tx: tx.execute("UPDATE queue SET due_ms = ?", (tx.now_ms + 3_600_000,)))
        desk.runtime._due_changed.set()
        await trio.sleep(5)
        # Its commit took longer than its delay: nobody looked between the two.
        await desk.store.write(lambda tx: tx.execute("UPDATE queue SET due_ms = ?", (tx.now_ms,)))
        desk.runtime._due_changed.set()
        with trio.fail_after(2):
            await desk.until(original.key, "DEAD_LETTER")


@pytest.mark.parametrize("ahead_ms", [50_000, 365 * 24 * 3600 * 1000])
async def test_a_stamp_of_a_wrong_clock_delays_no_retry(desk, ahead_ms, autojump_clock):
    original = await desk.one("fail", max_attempts=2)
    given = foreign(original, ahead_ms=ahead_ms, lease_epoch=1, lease_hlc=original.hlc, values={"owner": "node-a"})
    assert await desk.merge(given) == "applied"
    async with running(desk):
        with trio.fail_after(4):
            await desk.until(original.key, "DEAD_LETTER")


async def test_a_retry_is_not_forgotten_by_a_restart(tmp_path, autojump_clock):
    async with open_desk(tmp_path) as desk:
        original = await desk.one("fail", max_attempts=2)
        async with running(desk):
            await desk.until(original.key, "RETRYING")
    async with open_desk(tmp_path) as desk:
        await desk.store.write(desk.queue.rebuild)
        async with running(desk):
            await desk.until(original.key, "DEAD_LETTER")


# --- what an earlier process left ---


async def test_a_run_of_an_earlier_life_that_peers_tell_of_late_is_started_again(desk, autojump_clock):
    original = await desk.one("nap", b"1")
    async with running(desk), trio.open_nursery() as nursery:
        nursery.start_soon(desk.runtime.recover_strays, lambda _node: LIFE)
        await desk.until(original.key, "SUCCESS")
        left = foreign(
            original,
            node="node-a",
            lease_epoch=1,
            lease_hlc=original.hlc + 1,
            values={"status": "RUNNING", "attempt": 1, "claim_life": LIFE - 1},
        )
        late = msgspec.structs.replace(left, key="stp_late", origin=Origin("node-a", 99))
        assert await desk.merge(late) == "applied"
        ended = await desk.until("stp_late", "SUCCESS")
        nursery.cancel_scope.cancel()

    assert ended.integer("attempt") == 1
    assert len(await desk.history(Action.LOST)) == 1


@pytest.mark.parametrize("life", [LIFE - 1, LIFE])
async def test_a_run_of_a_lost_process_that_ends_one_of_ours_is_started_again(desk, autojump_clock, life):
    original = await desk.one("nap", b"1")
    async with running(desk), trio.open_nursery() as nursery:
        nursery.start_soon(desk.runtime.recover_strays, lambda _node: LIFE)
        ours = await desk.until(original.key, "RUNNING")
        theirs = foreign(
            ours,
            node="node-a",
            lease_epoch=ours.lease_epoch + 1,
            lease_hlc=ours.hlc + 1,
            values={"status": "RUNNING", "claim_life": life},
        )
        assert await desk.merge(msgspec.structs.replace(theirs, origin=Origin("node-a", 99))) == "applied"
        ended = await desk.until(original.key, "SUCCESS")
        nursery.cancel_scope.cancel()

    assert ended.lease_epoch > theirs.lease_epoch


async def test_a_run_that_only_the_ended_process_knew_of_is_told_of(desk):
    # Its claim was the last commit before the kill: peers took over the version before it.
    original = await desk.one()
    claimed = await desk.claim(original.key, life=LIFE - 1)
    moved = foreign(original, ahead_ms=9_000, lease_epoch=2, lease_hlc=claimed.step.hlc, values={"owner": "node-b"})
    assert await desk.merge(moved) == "applied"

    (told,) = await desk.history(Action.LOST)
    assert told.text("fence") == claimed.job.fence


async def test_a_full_store_queue_or_a_failed_read_ends_no_service(desk, monkeypatch, autojump_clock):
    troubles = {"read": 3, "write": 3}
    read, write = desk.store.read, desk.store.write

    async def flaky_read(fn: Any) -> Any:
        if troubles["read"]:
            troubles["read"] -= 1
            raise StoreError("the database cannot be read")
        return await read(fn)

    async def flaky_write(fn: Any, **more: Any) -> Any:
        if troubles["write"]:
            troubles["write"] -= 1
            raise LimitError("4096 requests wait")
        return await write(fn, **more)

    original = await desk.one()
    monkeypatch.setattr(desk.store, "read", flaky_read)
    monkeypatch.setattr(desk.store, "write", flaky_write)
    async with running(desk):
        await trio.sleep(5)
        await desk.until(original.key, "SUCCESS")
    assert troubles == {"read": 0, "write": 0}
