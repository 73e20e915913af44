"""The stored state of work without its moving parts: stores with the work queue's hook, and merges between them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import trio

from mesh.ids import make_life
from mesh.placement import Offer
from mesh.rows import Row
from node.env import Outcome
from node.storage.store import Store
from node.storage.transaction import Transaction
from node.work import transitions
from node.work.definition import Definition, Limits, StepDefinition, parse_workflow
from node.work.retries import RetryPolicy
from node.work.status import task_status
from node.work.tables import WORK_TABLES, Status
from node.work.transitions import Claimed, Finished
from node.work.work_queue import Queued, WorkQueue
from tests.node.conftest import StoreWorld, TestDisk

T = TypeVar("T")

AGENTS = frozenset({"echo", "other"})
POLICY = RetryPolicy(max_attempts=3, base_backoff_ms=1000, max_backoff_ms=60_000)
DONE = Outcome(kind="success", result=b"done")
FAILED = Outcome(kind="failed", error="no luck")
SPACE = "default"


def step(name: str, agent: str = "echo", *depends_on: str, **more: Any) -> StepDefinition:
    return StepDefinition(name=name, agent=agent, depends_on=depends_on, labels=more.pop("labels", {}), **more)


def workflow(**edges: list[str]) -> Definition:
    """`workflow(a=[], b=["a"])`: echo steps with these dependencies."""
    steps = [{"id": name, "agent": "echo", "dependsOn": parents} for name, parents in edges.items()]
    return parse_workflow({"steps": steps}, Limits())


class Entry(NamedTuple):
    """One row of the queue table."""

    agent: str
    priority: int
    runnable: int
    due_ms: int
    enqueued_hlc: int
    expires_ms: int


class Desk:
    """One node's store and queue."""

    def __init__(self, store: Store, me: str) -> None:
        self.store = store
        self.me = me
        self.life = make_life(1, 1)
        self.abilities = AGENTS
        self.rng = random.Random(1)
        self.queue = WorkQueue(me, lambda: Offer(node=me, abilities=self.abilities))
        store.watch("steps", self.queue.on_step)
        store.watch("holds", self.queue.on_hold)

    async def write(self, fn: Callable[[Transaction], T]) -> T:
        return await self.store.write(fn)

    async def submit(self, definition: Definition, key: str = "k") -> transitions.Submitted:
        return await self.write(
            lambda tx: transitions.submit(
                tx, me=self.me, namespace=SPACE, key=key, definition=definition, trace_id="ab" * 16
            )
        )

    async def one(self, key: str = "k", **more: Any) -> str:
        """Submit a task of one step; returns its id."""
        return (await self.submit(Definition((step("only", **more),)), key)).task_id

    async def steps(self, task_id: str) -> dict[str, Row]:
        found = await self.store.read(lambda reader: transitions.task_steps(reader, SPACE, task_id))
        return {row.text("name"): row for row in found}

    async def step(self, task_id: str, name: str = "only") -> Row:
        return (await self.steps(task_id))[name]

    async def task(self, task_id: str) -> Row:
        return await self.store.read(lambda reader: transitions.existing_task(reader, SPACE, task_id))

    async def status(self, task_id: str) -> Status:
        return task_status(await self.task(task_id), (await self.steps(task_id)).values())

    async def claim(self, row: Row) -> Claimed | None:
        entry = Queued(row.namespace, row.key, row.text("agent"))
        return await self.write(
            partial(transitions.claim, entry=entry, me=self.me, life=self.life, timeout_s=lambda _agent, _ms: 60.0)
        )

    async def finish(self, claimed: Claimed, outcome: Outcome = DONE, *, reopen: bool = False) -> Finished:
        return await self.write(
            lambda tx: transitions.finish(
                tx, claimed.step, outcome, me=self.me, policy=POLICY, rng=self.rng, reopen=reopen
            )
        )

    async def run(self, row: Row, outcome: Outcome = DONE) -> Finished:
        """Claim and finish."""
        claimed = await self.claim(row)
        assert claimed is not None
        return await self.finish(claimed, outcome)

    async def take_over(self, row: Row, lives: dict[str, int] | None = None) -> Row | None:
        known = lives or {}
        return await self.write(
            lambda tx: transitions.take_over(tx, row, me=self.me, why="owner is dead", current_life=known.get)
        )

    async def recover(self, row: Row) -> Row | None:
        """What the next process of this node does with a step that this one left RUNNING."""
        lives = {self.me: self.life + 1}
        return await self.write(lambda tx: transitions.recover_own(tx, row, me=self.me, current_life=lives.get))

    async def cancel(self, task_id: str, mode: str = "hard", reason: str = "") -> list[Row]:
        return await self.write(lambda tx: transitions.request_cancel(tx, SPACE, task_id, mode=mode, reason=reason))

    async def obey(self, task_id: str) -> None:
        task = await self.task(task_id)
        await self.write(lambda tx: transitions.obey_cancel(tx, task, me=self.me))

    async def replay(self, task_id: str, name: str | None = None) -> list[Row]:
        return (await self.write(lambda tx: transitions.replay(tx, SPACE, task_id, me=self.me, step_name=name))).steps

    async def replay_from(self, task_id: str, name: str) -> list[Row]:
        return (await self.write(lambda tx: transitions.replay(tx, SPACE, task_id, me=self.me, from_step=name))).steps

    async def actions(self, task_id: str) -> list[str]:
        rows = await self.store.read(lambda reader: reader.select("history", "task_id = ?", (task_id,)))
        return [row.text("action") for row in sorted(rows, key=lambda row: (row.hlc, row.seq))]

    async def queued(self) -> dict[str, Entry]:
        """The queue table by step id."""
        columns = ", ".join(Entry._fields)
        rows = await self.store.read(lambda reader: reader.sql(f"SELECT step_id, {columns} FROM queue"))
        return {row[0]: Entry(*row[1:]) for row in rows}

    async def pull(self, other: Desk) -> None:
        """Merge everything that the other desk has and this one has not."""
        chunk = await other.store.read(lambda reader: reader.rows_missing_from(self.store.vector, rows_max=100_000))
        assert chunk.vector is not None
        vector = chunk.vector

        def apply(tx: Transaction) -> None:
            for row in chunk.rows:
                tx.merge(row)
            tx.join(vector)

        await self.store.write(apply, remote=True)

    async def sums(self) -> Any:
        return await self.store.read(lambda reader: (reader.vector().digest(), reader.sums()))


@asynccontextmanager
async def desks(root: Path, *names: str) -> AsyncIterator[list[Desk]]:
    """Desks on disks of their own, for as long as the block lasts."""
    if not names:
        yield []
        return
    folder = root / names[0]
    folder.mkdir()
    world = StoreWorld(folder, TestDisk(folder), random.Random(names[0]))
    store = world.store(names[0], WORK_TABLES, migrations=None)
    desk = Desk(store, names[0])
    async with _running(store), desks(root, *names[1:]) as others:
        yield [desk, *others]


@asynccontextmanager
async def _running(store: Store) -> AsyncIterator[None]:
    await store.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        yield
        nursery.cancel_scope.cancel()
    await store.close()
